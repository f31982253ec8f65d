"""Examples of every command, as ``--help`` ends with them."""

from __future__ import annotations

__all__ = ["EXAMPLES"]

EXAMPLES: dict[str, tuple[tuple[str, str], ...]] = {
    "": (
        ("spectrascope probe", "a small network on handwritten digits, both shipped"),
        ("spectrascope probe resnet20.pt --dataset folder:images -o report.json", "a checkpoint of your own, kept"),
        ("spectrascope show report.json -o report.html", "as a page for a browser"),
    ),
    "probe": (
        ("spectrascope probe", "the embedded network, early in its training"),
        ("spectrascope probe net.pt --dataset folder:images -o report.json", "recognised from its keys; kept as JSON"),
        ("spectrascope probe net.pt --arch models.py:build --dataset npz:data.npz", "your architecture and arrays"),
        ("spectrascope probe ./my-gpt2 --dataset text:corpus.txt --layers '*attn*'", "attention only"),
    ),
    "rerun": (
        ("spectrascope rerun runs/one -o report.json", "goes on with what probe --run runs/one began"),
        ("spectrascope rerun runs/one --run runs/two", "all of it again"),
    ),
    "merge": (("spectrascope merge runs/one -o report.json", "the shards of a job array, put together"),),
    "triangle": (
        ("spectrascope triangle report.json --sort triangle", "of a saved report, the worst weight first"),
        ("spectrascope triangle net.pt --dataset folder:images", "of a network, measured now"),
    ),
    "decompose": (
        ("spectrascope decompose net.pt --dataset folder:images -o report.json", "kept with all that probe measures"),
        ("spectrascope show report.json --view decomposition --html parts.html", "the same again, and as a page"),
        ("spectrascope decompose ./my-gpt2 --dataset text:corpus.txt --fisher mc --draws 4", "drawn labels"),
    ),
    "weights": (
        ("spectrascope weights model.safetensors", "no data, no architecture needed"),
        ("spectrascope weights net.pt --report report.json", "with α_H of a saved report beside"),
    ),
    "inspect": (
        ("spectrascope inspect net.pt", "what probe would measure; reads names and shapes"),
        ("spectrascope inspect hf:org/name --num-samples all", "before anything is downloaded"),
    ),
    "suggest-beta": (
        ("spectrascope suggest-beta report.json --train-batch 256", "from a saved report, for steps on 256 samples"),
        ("spectrascope suggest-beta report.json --emit torch -o groups.py", "parameter groups to paste"),
        ("spectrascope suggest-beta net.pt --dataset folder:images --validate --html advice.html", "real steps"),
    ),
    "show": (
        ("spectrascope show report.json --top-k 12 --sort beta", "fitted again over fewer directions"),
        ("spectrascope show report.json --layers 'layer3.*' -o layer3.html", "some weights, as a page"),
        ("spectrascope show report.json -o report.csv", "every number as a column"),
    ),
    "explain": (
        ('spectrascope explain "step exponent"', "what a word of the tables means"),
        ("spectrascope explain conv1.weight report.json", "what a report says of a weight, in words"),
    ),
    "card": (
        ("spectrascope card report.json -o README.md", "a model card for the Hub: metadata and a table"),
        ("spectrascope card report.json --into README.md", "a section of a card that is there"),
    ),
    "plot": (
        ("spectrascope plot report.json -o figures", "every picture, as PNG, in a folder"),
        ("spectrascope plot report.json --picture triangle -o triangle.pdf", "one of them"),
    ),
    "trajectory": (
        ("spectrascope trajectory digits-cnn@early digits-cnn@final", "shipped, offline"),
        ("spectrascope trajectory --glob 'run/*.pt' --dataset folder:images -o run.html", "one run's checkpoints"),
    ),
    "bench": (
        ("spectrascope bench net.pt --dataset folder:images --rounds 5", "against plain double backprop"),
        ("spectrascope bench net.pt --dataset folder:images --peers", "PyHessian, curvlinops, hessian-eigenthings too"),
    ),
    "gate": (
        ("spectrascope gate net.pt --dataset folder:images --baseline base.json", "measured as the baseline was"),
        ("spectrascope gate report.json --baseline base.json --rule 'beta @ layer3.*: +-0.15'", "one rule more"),
        ("spectrascope gate report.json --baseline base.json --junit gate.xml -o gate.html", "for a pipeline"),
    ),
    "compare": (
        ("spectrascope compare before.json after.json --sort z", "what moved beyond its noise first"),
        ("spectrascope compare before.json after.json --number 'rank_models.*' --all", "other numbers, equal ones too"),
    ),
}  # fmt: skip
"""By command (the application's own by the empty name): a command line, and what it is for."""
