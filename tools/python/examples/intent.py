"""What a sentence wants of a home, as JSON that a program can rely on: intent.py MODEL "Turn on the kitchen light"."""

import json
import sys

import tandem

ROOMS = ["kitchen", "living room", "bedroom", "bathroom"]
SCHEMA = {
    "type": "object",
    "properties": {
        "action": {"enum": ["turn_on", "turn_off", "set_temperature"]},
        "room": {"enum": ROOMS},
        "degrees": {"type": "integer", "minimum": 5, "maximum": 30},
    },
    "required": ["action", "room"],
    "additionalProperties": False,
}

path, sentence = sys.argv[1:]
model = tandem.Model.open(path)
session = model.session()
prompt = f"The rooms are {', '.join(ROOMS)}. Answer with JSON of action, room and, for temperatures, degrees.\n\n{sentence}"
if model.has_chat_template:
    answer = session.chat([{"role": "user", "content": prompt}], json_schema=SCHEMA, temperature=0)
else:
    answer = session.generate(prompt, json_schema=SCHEMA, temperature=0)
intent = json.loads(answer.read())
print(intent["action"], intent["room"], intent.get("degrees", ""))
