"""HTTP server of a plan: OpenAI's completions and chat completions, models, health, metrics, and a page to type into.

    connection   one TCP connection: limits of headers, idle senders and slow readers (a protocol of uvicorn)
    guard        what every request passes: key, host, origin, size of the body, headers of the response
    strict_json, neutral, protocol    bytes of a body ─► ChatBody or CompletionBody, or a refusal that names the field
    service      the engine behind it: phases from loading to draining, prompts to requests, submission
    answers      events of the engine ─► one JSON object or a stream of server-sent events, shaped by ``shapes``
    refusals     ApiError, and OpenAI's error object
    metrics      Prometheus' text
    app, server  routes; loading, signals and the end of the process
    page.html    the page at /, one file

The engine runs in threads and processes of its own (``runtime.continuous``); everything here runs in one event loop
but parsing and tokenizing, which have two threads. It needs the libraries of the optional group ``serve``, which
nothing else imports. ``runtime.commands.serving`` calls it.
"""
