"""Writes the sample dataset of this folder: `python make.py`.

Every row is a customer's message to a repair desk and the card that the desk
files for it. The card has four lines, always the same four:

    Item: kettle
    Fault: does not switch off at the boil
    Urgent: no
    Next: replace the steam thermostat

What customers say, what is wrong and what is done about it were written for
this project by hand, in FAULTS; this script only puts a message around them.
The same seed gives the same files.
"""

import json
import pathlib
import random

# item: what the customer says of "it" (two ways), the fault, urgent?, the next step
FAULTS = {
    "kettle": [
        ("it keeps boiling until I pull the plug", "it never clicks off by itself", "does not switch off at the boil", False, "replace the steam thermostat"),
        ("there is a puddle under it every morning", "water seeps out at the bottom", "leaks at the base", True, "replace the base seal"),
        ("the light comes on but the water stays cold", "it glows and does not heat", "does not heat", False, "replace the heating element"),
        ("the lid springs open while it boils", "the lid will not stay shut", "lid does not lock", False, "replace the lid catch"),
    ],
    "toaster": [
        ("the lever will not stay down", "the bread pops up at once", "lever does not latch", False, "replace the holding magnet"),
        ("one side of the bread stays white", "it only browns the left side", "heats on one side only", False, "replace the broken heating wire"),
        ("I saw a flame between the slots", "smoke comes out though it is empty", "burns crumbs", True, "unplug it and empty the crumb tray"),
        ("everything comes out black, even on one", "the dial makes no difference, it always burns", "browning dial has no effect", False, "replace the timer dial"),
    ],
    "washing machine": [
        ("it stops with the drum full of water", "the water stays in after the wash", "does not drain", False, "clean the pump filter"),
        ("it walks across the floor when it spins", "the spin makes the whole room shake", "shakes when spinning", False, "level the feet"),
        ("there is water all over the floor", "the door drips during the wash", "leaks at the door", True, "replace the door seal"),
        ("the drum fills but never turns", "I hear a hum and the drum stands still", "drum does not turn", False, "replace the drive belt"),
    ],
    "bicycle": [
        ("the chain jumps when I climb", "it slips under my feet on every hill", "chain slips", False, "replace the chain and the cassette"),
        ("I pull the lever and nothing slows down", "the front brake lever touches the bar", "front brake does not grip", True, "tighten the brake cable"),
        ("the back tyre is flat again after one night", "the rear wheel loses air by the hour", "rear tyre loses air", False, "patch the rear tube"),
        ("the wheel rubs at the same spot every turn", "the front wheel wobbles from side to side", "front wheel is out of true", False, "true the front wheel"),
    ],
    "desk lamp": [
        ("it flickers whenever I move the arm", "the light goes off when I bend it", "flickers when moved", False, "replace the cable in the arm"),
        ("the arm sinks until it lies on the desk", "it will not hold its height", "arm does not hold", False, "tighten the arm springs"),
        ("I got a shock from the switch", "the metal foot tingles when I touch it", "housing is live", True, "unplug it and replace the cable"),
        ("it smells of hot plastic after ten minutes", "the shade is too hot to touch", "overheats", True, "fit a bulb of lower power"),
    ],
    "laptop": [
        ("it is empty after twenty minutes", "it dies as soon as I take the charger off", "battery does not hold charge", False, "replace the battery"),
        ("the fan roars and the keys get hot", "it gets so hot that it shuts down", "overheats", False, "clean the fan and the vents"),
        ("the middle row of keys does nothing", "three letters no longer type", "keys do not respond", False, "replace the keyboard"),
        ("the case bulges and the lid will not close", "the bottom has swollen like a cushion", "battery is swollen", True, "stop charging it and remove the battery"),
    ],
    "phone": [
        ("the glass cracked when it fell", "there is a spider web across the display", "screen is broken", False, "replace the screen"),
        ("I must hold the plug at an angle to charge it", "it only charges when I press the cable", "charging socket is loose", False, "clean the charging socket"),
        ("people say they hear nothing of me", "nobody can hear me on calls", "microphone is silent", False, "replace the microphone"),
        ("the back has lifted off and it is warm", "it has grown thick in the middle", "battery is swollen", True, "stop charging it and remove the battery"),
    ],
    "fridge": [
        ("the milk turns sour in two days", "it hums but the shelves are warm", "does not cool", False, "clean the condenser and check the gas"),
        ("a sheet of ice grows at the back", "the back wall is white with frost", "ices up", False, "replace the defrost heater"),
        ("the door swings open by itself", "the door does not stay shut", "door does not close", False, "replace the door seal"),
        ("water collects under the vegetable drawer", "there is a pool below the drawers", "drain is blocked", False, "clear the drain hole"),
    ],
    "vacuum cleaner": [
        ("it hums and picks up nothing", "the dust stays where it is", "has no suction", False, "clear the hose and change the bag"),
        ("the cord no longer pulls back in", "the cable hangs out and will not wind up", "cord does not rewind", False, "replace the rewind spring"),
        ("it smells burnt and sparks at the vent", "I see sparks inside when it runs", "motor sparks", True, "replace the motor brushes"),
        ("it stops after five minutes and starts again later", "it cuts out when it gets warm", "cuts out when warm", False, "change the motor filter"),
    ],
    "coffee machine": [
        ("only a few drops come out", "the coffee comes out drop by drop", "flow is blocked", False, "descale it"),
        ("the cup is only lukewarm", "the coffee is never hot", "coffee is not hot", False, "replace the heater thermostat"),
        ("water runs out below the tank", "the counter is wet around it", "leaks at the tank", True, "replace the tank valve"),
        ("the grinder screams and grinds nothing", "the beans stay in the hopper", "grinder is jammed", False, "clear the grinder"),
    ],
    "dishwasher": [
        ("the plates come out as dirty as before", "the arms inside do not turn", "does not clean", False, "clear the spray arms"),
        ("dirty water stands in the bottom", "it leaves a pool inside", "does not drain", False, "clean the pump filter"),
        ("the kitchen floor is wet in front of it", "it drips from the lower edge of the door", "leaks at the door", True, "replace the door seal"),
        ("the glasses have a white film", "everything is dull and chalky", "leaves lime on the glasses", False, "refill the salt"),
    ],
    "radio": [
        ("every station crackles", "I only hear a hiss on all stations", "reception is poor", False, "replace the aerial"),
        ("it crackles when I turn the volume", "the sound jumps at the volume knob", "volume knob crackles", False, "clean the volume control"),
        ("it forgets the stations every night", "the clock is at zero each morning", "loses its memory", False, "replace the backup battery"),
        ("there is a smell of burning at the plug", "the plug is hot and brown", "plug overheats", True, "unplug it and replace the plug"),
    ],
    "electric drill": [
        ("the bit falls out while I work", "it does not hold the bit", "chuck does not hold", False, "replace the chuck"),
        ("blue sparks fly out at the side", "it sparks when I pull the trigger", "motor sparks", True, "replace the motor brushes"),
        ("it runs at one speed only", "the trigger is all or nothing", "speed control has no effect", False, "replace the trigger switch"),
        ("the battery pack lasts three screws", "it is weak right after charging", "battery does not hold charge", False, "replace the battery"),
    ],
    "sewing machine": [
        ("the lower thread comes up in loops", "there are loops on the back of the cloth", "lower thread loops", False, "rethread the upper thread"),
        ("the needle breaks after a few stitches", "I have broken four needles today", "breaks needles", False, "set the needle height"),
        ("the cloth does not move along", "it sews on the same spot", "does not feed the cloth", False, "clean the feed teeth"),
        ("the pedal gets hot and smells", "smoke rises from the pedal", "pedal overheats", True, "unplug it and replace the pedal"),
    ],
    "printer": [
        ("it pulls three sheets at a time", "the paper always jams at the start", "paper jams", False, "clean the feed rollers"),
        ("there are white stripes on every page", "half of each letter is missing", "prints stripes", False, "clean the print head"),
        ("my computer says that it is offline", "it does not appear in the list any more", "is not found", False, "connect it to the network again"),
        ("black dust comes out and everything is smeared", "the toner wipes off with a finger", "toner does not stick", False, "replace the fuser"),
    ],
    "hair dryer": [
        ("it blows but the air is cold", "no warm air comes any more", "does not heat", False, "replace the heating wire"),
        ("it switches off after a minute", "it stops when it gets hot", "cuts out when warm", False, "clean the air filter"),
        ("I saw a spark in the handle", "it cracked and flashed in my hand", "sparks in the handle", True, "unplug it and replace the switch"),
        ("it rattles as if a stone were in it", "the fan scrapes", "fan scrapes", False, "clear the fan"),
    ],
    "wall clock": [
        ("it loses ten minutes a day", "it is always late by noon", "runs slow", False, "replace the battery"),
        ("the hands stop at half past", "both hands hang at the six", "hands touch", False, "bend the hands apart"),
        ("it ticks but the hands stand still", "I hear it and it does not move", "hands do not move", False, "press the hands onto the shaft"),
        ("it strikes five at two", "the chime and the hands disagree", "strikes the wrong hour", False, "set the strike to the hour"),
    ],
    "camera": [
        ("every picture has the same grey spot", "there is a speck in the same place each time", "dust on the sensor", False, "clean the sensor"),
        ("the lens comes out and goes in again", "the lens does not open any more", "lens is jammed", False, "clear the lens barrel"),
        ("it says that the card cannot be read", "it does not see the memory card", "does not read the card", False, "clean the card contacts"),
        ("the flash stays dark", "it never flashes, even at night", "flash does not fire", False, "replace the flash tube"),
    ],
    "garden mower": [
        ("I pull the cord and it only coughs", "it will not start after the winter", "does not start", False, "change the fuel and the spark plug"),
        ("it tears the grass instead of cutting", "the lawn looks chewed", "blade is blunt", False, "sharpen the blade"),
        ("it shakes so much that my hands go numb", "it hit a stone and now it shakes", "blade is bent", True, "stop it and replace the blade"),
        ("white smoke comes out all the time", "it smokes like a chimney", "burns oil", False, "check the oil level"),
    ],
    "tap": [
        ("it drips all night", "a drop falls every second", "drips", False, "replace the washer"),
        ("water squirts out at the handle", "it sprays when I turn the handle", "leaks at the handle", True, "close the valve and replace the seal"),
        ("only a thin stream comes", "it takes a minute to fill a glass", "flow is weak", False, "clean the aerator"),
        ("the handle turns round and round", "I cannot turn it off any more", "does not close", True, "close the valve and replace the cartridge"),
    ],
    "oven": [
        ("the cake is raw inside after an hour", "it never gets as hot as it says", "does not reach its temperature", False, "replace the temperature sensor"),
        ("the inside is dark, the lamp is dead", "I cannot see into it any more", "lamp is dead", False, "replace the lamp"),
        ("the fuse goes when I switch it on", "all the lights in the flat go out with it", "trips the fuse", True, "switch it off and replace the heating element"),
        ("the door hangs and heat comes out", "the door does not shut tightly", "door does not close", False, "replace the door hinge"),
    ],
    "television": [
        ("there is sound and no picture", "the screen is black and I hear the news", "has no picture", False, "replace the backlight"),
        ("it does not listen to the remote", "the remote does nothing", "remote has no effect", False, "replace the batteries of the remote"),
        ("it turns itself off every evening", "it goes off in the middle of a film", "switches itself off", False, "replace the power board"),
        ("it bangs and smells of smoke", "there was a bang and a burnt smell", "power board is burnt", True, "unplug it and replace the power board"),
    ],
    "door bell": [
        ("visitors press it and I hear nothing", "it is silent when you press it", "does not ring", False, "replace the battery"),
        ("it rings when nobody is there", "it rings by itself at night", "rings by itself", False, "replace the push button"),
        ("it hums instead of ringing", "there is only a low hum", "hums", False, "clean the striker"),
        ("it is so quiet that I miss the post", "I can barely hear it", "is too quiet", False, "set the volume"),
    ],
    "umbrella": [
        ("one rib sticks out", "a rib has come off the cloth", "rib is loose", False, "sew the rib to the cloth"),
        ("it will not stay open", "it falls shut over my head", "does not stay open", False, "replace the catch spring"),
        ("the rain comes through at the top", "I get wet under it", "cloth leaks", False, "proof the cloth"),
        ("the handle came off in my hand", "the handle turns on the stick", "handle is loose", False, "glue the handle"),
    ],
}

# Items that the training file never shows: is the form learned, or the list?
UNSEEN = {
    "electric blanket": [
        ("one corner gets burning hot", "there is a brown mark on the cloth", "overheats", True, "unplug it and replace the heating wire"),
        ("it stays cold on every level", "it does not get warm at all", "does not heat", False, "replace the control switch"),
    ],
    "food mixer": [
        ("it hums and the hooks do not turn", "the beaters stand still", "beaters do not turn", False, "replace the drive gear"),
        ("it smells burnt and sparks at the vent", "I see sparks inside when it runs", "motor sparks", True, "replace the motor brushes"),
    ],
    "garden hose": [
        ("water sprays out at the tap end", "it is wet around the coupling", "leaks at the coupling", False, "replace the coupling seal"),
        ("only a thin stream comes", "the water hardly reaches the roses", "flow is weak", False, "clean the nozzle"),
    ],
    "alarm clock": [
        ("it does not ring in the morning", "it is silent at the set hour", "does not ring", False, "replace the buzzer"),
        ("it loses ten minutes a day", "it is always late by noon", "runs slow", False, "replace the battery"),
    ],
    "tent": [
        ("the rain comes through at the seams", "we woke up wet", "cloth leaks", False, "proof the seams"),
        ("one pole has snapped", "a pole broke in the wind", "pole is broken", False, "replace the pole"),
    ],
    "bedside speaker": [
        ("it is silent on one side", "I hear the music on the left only", "right side is silent", False, "replace the cable"),
        ("it is empty after twenty minutes", "it dies as soon as I take the charger off", "battery does not hold charge", False, "replace the battery"),
    ],
}

OPENERS = ["", "", "", "Hi, ", "Hello, ", "Good morning, ", "Good evening, ", "Dear repair desk, ", "Hi there, "]
INTROS = [
    "my {item} needs help: {said}.",
    "I have trouble with my {item}. {Said}.",
    "it is about the {item} {place}. {Said}.",
    "we have had this {item} for {age}. Since {since} {said}.",
    "can you mend {a} {item}? {Said}.",
    "my {item} is {age} old and {said}.",
    "since {since} there is something wrong with our {item}: {said}.",
    "{said}. I mean the {item} {place}.",
    "I bought {a} {item} {age} ago. Now {said}.",
    "the {item} {place} is broken, I think. {Said}.",
]
PLACES = ["in the kitchen", "in my workshop", "at my mother's", "in the office", "upstairs", "in our holiday flat", "from the flea market", "in the hall"]
AGES = ["two years", "six months", "ten years", "a year", "three weeks", "five years", "a month"]
SINCES = ["Sunday", "yesterday", "last week", "the move", "this morning", "Easter", "the storm", "we came back"]
EXTRAS = [
    "", "", "", "",
    "I cleaned it and that changed nothing.",
    "The receipt is gone.",
    "My brother had a look and gave up.",
    "I would rather mend it than buy a new one.",
    "It was a present from my aunt.",
    "I live on the third floor.",
    "I am at home after six.",
    "The shop has closed down.",
    "There is nothing about it in the manual.",
]
CLOSERS = ["", "", "What can be done?", "Can you help?", "Thanks, {name}", "{name} from {town}", "Best wishes, {name}", "Is it worth it?", "Please tell me what it costs. {name}"]
NAMES = ["Ada", "Bruno", "Carla", "Dov", "Elin", "Farid", "Greta", "Hugo", "Ines", "Jonas", "Kira", "Leo", "Mina", "Nils", "Olga", "Pavel", "Rosa", "Sami", "Tess", "Udo", "Vera", "Wim", "Yara", "Zoe"]
TOWNS = ["Brest", "Cork", "Delft", "Essen", "Faro", "Ghent", "Hull", "Izmir", "Jena", "Kiel", "Lille", "Malmo", "Narvik", "Oslo", "Porto", "Riga", "Siena", "Turku"]


def message(random, item, said):
    text = random.choice(OPENERS) + random.choice(INTROS).format(
        item=item,
        a="an" if item[0] in "aeiou" else "a",
        said=said,
        Said=said[0].upper() + said[1:],
        place=random.choice(PLACES),
        age=random.choice(AGES),
        since=random.choice(SINCES),
    )
    closer = random.choice(CLOSERS).format(name=random.choice(NAMES), town=random.choice(TOWNS))
    parts = [text[0].upper() + text[1:], random.choice(EXTRAS), closer]
    return " ".join(part for part in parts if part)


def card(item, fault, urgent, step):
    return f"Item: {item}\nFault: {fault}\nUrgent: {'yes' if urgent else 'no'}\nNext: {step}"


def rows(faults, count, seed):
    """`count` rows, every fault about equally often, no message twice."""
    rng = random.Random(seed)
    cases = [(item, *fault) for item, list_ in faults.items() for fault in list_]
    made, seen = [], set()
    while len(made) < count:
        rng.shuffle(cases)
        for item, one, two, fault, urgent, step in cases:
            text = message(rng, item, rng.choice([one, two]))
            if len(made) < count and text not in seen:
                seen.add(text)
                answer = card(item, fault, urgent, step)
                made.append({"messages": [{"role": "user", "content": text}, {"role": "assistant", "content": answer}]})
    return made


def write(name, rows):
    path = pathlib.Path(__file__).parent / name
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))


write("repair-desk.jsonl", rows(FAULTS, 300, 1))
write("repair-desk-unseen.jsonl", rows(UNSEEN, 30, 2))
