"""Chat template: renders a conversation as the prompt format that the model was trained on.

    template    ChatTemplate, which the commands use, and Turn; it starts the renderer and talks to it
    renderer    a program of its own, which compiles and runs the template, within limits of memory and processor time

The template lies beside the tokenizer. It is a Jinja program of the tokenizer's author, so it may run for ever or ask
for any amount of memory, which a sandbox does not prevent; and its compilation may exhaust the stack. All this happens
in the renderer, and costs a refusal.
"""
