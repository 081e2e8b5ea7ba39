"""Every composition of a bundle on one text: compositions.py MODEL BUNDLE TEXT."""

import sys

import tandem

path, bundle_path, text = sys.argv[1:]
model = tandem.Model.open(path)
bundle = model.bundle(bundle_path)
session = model.session()
for name in [None, *bundle.compositions]:
    session.set_composition(bundle.composition(name) if name else None)
    print(f"{name or 'model alone'}:{session.generate(text, temperature=0, max_tokens=32).read()}")
