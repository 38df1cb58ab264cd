"""Commands of ``python -m runtime``: `run`, `bench` and `verify`.

A command's own module (`run`, `bench`, `verify`) has its options and help and imports nothing heavy, so that help is
immediate. Its work is in a module that is imported when it begins: `generate` of `run`, `measure` of `bench` (with
`step_times`), `verify_images` of `verify`. `prompts` reads prompts, `loading` loads the engine and shows that on
stderr, `placement` has a plan as text, `report` the figures, `options` the options and the output that commands share.

`runtime.cli` calls the commands; decoding itself is `runtime.engine`. Only these modules print, and only they and
`runtime.cli` read the environment.
"""
