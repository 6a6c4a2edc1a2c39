"""The canary controller: a challenger takes a rising share of the traffic and is promoted or rolled back by evidence.

To run a ramp from Python, in the folder of a project, with `settings = Settings.read()` and
`params = PROJECT.load_params()`:

    starting.start(PROJECT, settings, params)       # the challenger becomes a shadow: the first step
    look = controller.look(PROJECT, settings, params)    # one look: decides, stores the decision, carries it out
    look.action, look.reason, look.is_over

`look` is the only thing that a schedule calls. It is safe to kill and to repeat, and two at once are one.
`params.canary.promotion` and `params.canary.rollback` are `approve` by default: then `look` reports `waits`, and
`look(…, approve=True)` carries the decision out. Set them to `automatic` to let the ramp run by itself.
"""
