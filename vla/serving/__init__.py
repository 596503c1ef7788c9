"""Models behind HTTP: `vla serve vlm`.

    app ─ routes ─→ protocol ─ a request's meaning ─→ pictures ─→ batcher ─ model thread ─→ answers

`protocol` and `answers` know OpenAI's shapes, `batcher` knows neither HTTP nor pictures, `engine`
alone knows the model.
"""
