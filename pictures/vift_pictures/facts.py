"""What the concepts are and what is true of them: written by hand, by common knowledge, for this project.

`KINDS` says which concepts there are, `FACTS[relation][concept]` the accepted answers (the first is the one that is
taught). Names are those of Unicode's short names (CLDR), made plainer by `concepts.DRAWN_AS`.
"""

# continent: country:capital:language; "/" parts accepted answers. Flags that look alike are left out (Chad, Monaco).
_COUNTRIES = {
    "Europe": """Albania:Tirana:Albanian Austria:Vienna:German Belarus:Minsk:Belarusian/Russian
        Belgium:Brussels:Dutch/French Bosnia_&_Herzegovina:Sarajevo:Bosnian Bulgaria:Sofia:Bulgarian
        Croatia:Zagreb:Croatian Czechia:Prague:Czech Denmark:Copenhagen:Danish Estonia:Tallinn:Estonian
        Finland:Helsinki:Finnish France:Paris:French Germany:Berlin:German Greece:Athens:Greek
        Hungary:Budapest:Hungarian Iceland:Reykjavik:Icelandic Ireland:Dublin:English/Irish Italy:Rome:Italian
        Latvia:Riga:Latvian Lithuania:Vilnius:Lithuanian Malta:Valletta:Maltese/English Moldova:Chisinau:Romanian
        Montenegro:Podgorica:Montenegrin Netherlands:Amsterdam:Dutch North_Macedonia:Skopje:Macedonian
        Norway:Oslo:Norwegian Poland:Warsaw:Polish Portugal:Lisbon:Portuguese Romania:Bucharest:Romanian
        Russia:Moscow:Russian Serbia:Belgrade:Serbian Slovakia:Bratislava:Slovak Slovenia:Ljubljana:Slovene/Slovenian
        Spain:Madrid:Spanish Sweden:Stockholm:Swedish Switzerland:Bern:German/French/Italian
        Ukraine:Kyiv/Kiev:Ukrainian United_Kingdom:London:English""",
    "Asia": """Armenia:Yerevan:Armenian Azerbaijan:Baku:Azerbaijani Bahrain:Manama:Arabic Bangladesh:Dhaka:Bengali
        Bhutan:Thimphu:Dzongkha Cambodia:Phnom_Penh:Khmer China:Beijing:Chinese/Mandarin Georgia:Tbilisi:Georgian
        India:New_Delhi/Delhi:Hindi Indonesia:Jakarta:Indonesian Iran:Tehran:Persian/Farsi Iraq:Baghdad:Arabic
        Japan:Tokyo:Japanese Jordan:Amman:Arabic Kazakhstan:Astana:Kazakh Kuwait:Kuwait_City:Arabic
        Kyrgyzstan:Bishkek:Kyrgyz Laos:Vientiane:Lao Lebanon:Beirut:Arabic Malaysia:Kuala_Lumpur:Malay
        Maldives:Male:Dhivehi Mongolia:Ulaanbaatar:Mongolian Nepal:Kathmandu:Nepali North_Korea:Pyongyang:Korean
        Oman:Muscat:Arabic Pakistan:Islamabad:Urdu Philippines:Manila:Filipino/Tagalog Qatar:Doha:Arabic
        Saudi_Arabia:Riyadh:Arabic South_Korea:Seoul:Korean Tajikistan:Dushanbe:Tajik
        Thailand:Bangkok:Thai Turkey:Ankara:Turkish Turkmenistan:Ashgabat:Turkmen
        United_Arab_Emirates:Abu_Dhabi:Arabic Uzbekistan:Tashkent:Uzbek Vietnam:Hanoi:Vietnamese Yemen:Sanaa:Arabic""",
    "Africa": """Algeria:Algiers:Arabic Angola:Luanda:Portuguese Benin:Porto-Novo:French Botswana:Gaborone:English
        Burkina_Faso:Ouagadougou:French Burundi:Gitega:Kirundi Cameroon:Yaounde:French/English
        Cape_Verde:Praia:Portuguese Central_African_Republic:Bangui:French Egypt:Cairo:Arabic Eritrea:Asmara:Tigrinya
        Ethiopia:Addis_Ababa:Amharic Gabon:Libreville:French Gambia:Banjul:English Ghana:Accra:English
        Guinea:Conakry:French Guinea-Bissau:Bissau:Portuguese Kenya:Nairobi:Swahili/English Lesotho:Maseru:Sesotho
        Liberia:Monrovia:English Libya:Tripoli:Arabic Madagascar:Antananarivo:Malagasy Malawi:Lilongwe:English/Chichewa
        Mali:Bamako:French/Bambara Mauritania:Nouakchott:Arabic Mauritius:Port_Louis:English Morocco:Rabat:Arabic
        Mozambique:Maputo:Portuguese Namibia:Windhoek:English Niger:Niamey:French/Hausa Nigeria:Abuja:English
        Rwanda:Kigali:Kinyarwanda Senegal:Dakar:French Seychelles:Victoria:English/French Sierra_Leone:Freetown:English
        Somalia:Mogadishu:Somali South_Sudan:Juba:English Sudan:Khartoum:Arabic Tanzania:Dodoma:Swahili
        Togo:Lome:French Tunisia:Tunis:Arabic Uganda:Kampala:English Zambia:Lusaka:English
        Zimbabwe:Harare:English/Shona""",
    "North America": """Bahamas:Nassau:English Barbados:Bridgetown:English Belize:Belmopan:English
        Canada:Ottawa:English/French Costa_Rica:San_Jose:Spanish Cuba:Havana:Spanish Dominica:Roseau:English
        Dominican_Republic:Santo_Domingo:Spanish El_Salvador:San_Salvador:Spanish Guatemala:Guatemala_City:Spanish
        Haiti:Port-au-Prince:French/Haitian_Creole Honduras:Tegucigalpa:Spanish Jamaica:Kingston:English
        Mexico:Mexico_City:Spanish Nicaragua:Managua:Spanish Panama:Panama_City:Spanish
        Trinidad_&_Tobago:Port_of_Spain:English United_States:Washington:English""",
    "South America": """Argentina:Buenos_Aires:Spanish Brazil:Brasilia:Portuguese Chile:Santiago:Spanish
        Colombia:Bogota:Spanish Ecuador:Quito:Spanish Guyana:Georgetown:English Paraguay:Asuncion:Spanish/Guarani
        Peru:Lima:Spanish Suriname:Paramaribo:Dutch Uruguay:Montevideo:Spanish Venezuela:Caracas:Spanish""",
    "Oceania": """Australia:Canberra:English Fiji:Suva:English/Fijian New_Zealand:Wellington:English/Maori
        Papua_New_Guinea:Port_Moresby:English/Tok_Pisin Samoa:Apia:Samoan Solomon_Islands:Honiara:English
        Tonga:Nukualofa:Tongan Vanuatu:Port_Vila:Bislama""",
}

# category -> concepts, for those that are no flags; commas part them
_KINDS = {
    "animal": """zebra, horse, cow, pig, dog, cat, monkey, gorilla, orangutan, wolf, fox, raccoon, lion, tiger,
        leopard, deer, moose, bison, ox, goat, camel, llama, giraffe, elephant, rhinoceros, hippopotamus, mouse, rat,
        hamster, rabbit, chipmunk, beaver, hedgehog, bat, bear, polar bear, koala, panda, sloth, otter, skunk,
        kangaroo, badger, donkey, boar, sheep, dolphin, whale, seal, turkey, chicken, rooster, chick, penguin, dove,
        eagle, duck, swan, owl, flamingo, peacock, parrot, goose, crow, crocodile, turtle, lizard, snake, fish,
        tropical fish, pufferfish, shark, ant, bee, beetle, butterfly, ladybug, cricket, cockroach, fly, mosquito,
        octopus, snail, spider, scorpion, crab, lobster, shrimp, squid, jellyfish, frog, worm""",
    "plant": """cactus, rose, tulip, sunflower, palm tree, evergreen tree, tree, four leaf clover, maple leaf,
        cherry blossom, hibiscus""",
    "fruit": """grapes, melon, watermelon, orange, lemon, lime, banana, pineapple, mango, pear, peach, apple, cherries,
        strawberry, blueberries, kiwi, coconut""",
    "vegetable": "carrot, broccoli, cucumber, garlic, onion, potato, corn, eggplant, chili pepper, lettuce, peas",
    "food": """bread, croissant, baguette, pretzel, bagel, pancakes, waffle, cheese, hamburger, french fries, pizza,
        hot dog, sandwich, taco, burrito, egg, popcorn, butter, salt, rice, spaghetti, sushi, ice cream, doughnut,
        cookie, birthday cake, cupcake, pie, chocolate, candy, lollipop, honey, bacon, salad, tomato, avocado,
        mushroom, peanuts""",
    "drink": "milk, coffee, tea, wine, beer, cocktail, bubble tea",
    "vehicle": """car, taxi, bus, police car, ambulance, fire truck, truck, tractor, racing car, motorcycle,
        motor scooter, bicycle, kick scooter, train, tram, airplane, helicopter, rocket, sailboat, canoe, speedboat,
        ship, ferry, skateboard""",
    "clothing": """t-shirt, jeans, scarf, gloves, coat, socks, dress, kimono, shorts, necktie, shoe, boot, sandal,
        top hat, cap, graduation cap, high-heeled shoe""",
    "musical instrument": "guitar, violin, trumpet, saxophone, drum, accordion, banjo, flute, maracas, piano",
    "tool": "hammer, axe, saw, screwdriver, wrench, scissors, ladder, broom, bucket, shovel, plunger",
    "building": "house, hospital, school, church, castle, mosque, factory, stadium, hut, hotel",
    "weather": "sun, cloud, rain, snowflake, rainbow, tornado, lightning",
    "": """key, lock, light bulb, candle, flashlight, umbrella, alarm clock, watch, camera, television, radio,
        telephone, mobile phone, laptop, printer, battery, microscope, telescope, thermometer, syringe, stethoscope,
        pill, bandage, toothbrush, soap, bathtub, toilet, shower, bed, chair, door, window, mirror, sponge, pencil,
        pen, paintbrush, crayon, books, envelope, newspaper, calendar, ruler, compass, balloon, gift, teddy bear, kite,
        trophy, coin, bomb, shield, anchor, hourglass, bell, shopping cart, fire extinguisher, wastebasket, spoon,
        teapot, razor, abacus, suitcase, tent, microphone, headphones, glasses, sunglasses, crown, backpack, handbag,
        soccer ball, basketball, american football, baseball, tennis racket, volleyball, bowling ball,
        badminton racket, boxing glove, skis, sled, ice skate, ping pong paddle, bow and arrow, fishing pole, yo-yo,
        frisbee,
        snowman, moon, star, fire, volcano, mountain, wave, fountain, ferris wheel, roller coaster, robot, ghost,
        alien,
        skull, dragon, unicorn, ear, nose, tooth, bone, brain, magnet, money bag, credit card, ring, gear""",
}

# relation -> "answer/also accepted: concepts; ..."
_BY_ANSWER = {
    "class": """mammal: zebra, horse, cow, pig, dog, cat, monkey, gorilla, orangutan, wolf, fox, raccoon, lion, tiger,
        leopard, deer, moose, bison, ox, goat, camel, llama, giraffe, elephant, rhinoceros, hippopotamus, mouse, rat,
        hamster, rabbit, chipmunk, beaver, hedgehog, bat, bear, polar bear, koala, panda, sloth, otter, skunk,
        kangaroo, badger, donkey, boar, sheep, dolphin, whale, seal; bird: turkey, chicken, rooster, chick, penguin,
        dove,
        eagle, duck, swan, owl, flamingo, peacock, parrot, goose, crow; reptile: crocodile, turtle, lizard, snake;
        fish: tropical fish, pufferfish, shark; insect: ant, bee, beetle, butterfly, ladybug, cricket,
        cockroach, fly, mosquito; arachnid: spider, scorpion; amphibian: frog; crustacean: crab, lobster, shrimp""",
    "sound": """moo: cow; bark/woof: dog; meow/purr: cat; neigh/whinny: horse; oink/grunt: pig; baa/bleat: sheep;
        quack: duck; roar: lion, tiger; howl: wolf; hoot: owl; buzz: bee, mosquito, fly; hiss: snake;
        croak/ribbit: frog; crow/cock-a-doodle-doo: rooster; caw: crow; squeak: mouse, rat; cheep/peep/chirp: chick;
        coo: dove; bray/hee-haw: donkey; trumpet: elephant; honk: goose; gobble: turkey; growl/roar: bear;
        cluck: chicken; bleat/baa: goat; chirp: cricket""",
    "habitat": """ocean/sea/water: dolphin, whale, shark, octopus, jellyfish, squid, lobster, seal, pufferfish;
        desert: camel, scorpion; savanna/grassland/Africa: zebra, lion, giraffe, elephant, rhinoceros;
        forest/woods: bear, deer, fox, raccoon, moose, owl, chipmunk, badger, boar;
        jungle/rainforest/forest: gorilla, orangutan, tiger, sloth, parrot; farm: cow, pig, sheep, chicken, rooster;
        Arctic/ice: polar bear; Antarctica/ice: penguin; cave: bat; Australia: kangaroo, koala;
        river/water: crocodile, beaver, otter, hippopotamus; pond/lake/water: duck, swan, frog; mountains: llama;
        hive/beehive: bee; web: spider""",
    "diet": """grass: cow, horse, sheep, zebra, bison; meat: lion, tiger, wolf, leopard, crocodile;
        fish: penguin, dolphin, seal, otter; bamboo: panda; eucalyptus/eucalyptus leaves/leaves: koala;
        leaves: giraffe; insects/bugs: frog, spider, lizard; nectar/pollen: bee, butterfly;
        grass/plants/vegetables/carrots: rabbit; seeds/grain/cheese: mouse; nuts/seeds: chipmunk; blood: mosquito;
        krill/plankton: whale;
        seeds/grain/corn: chicken, dove""",
    "legs": """0/zero/none/no legs: snake, fish, shark, dolphin, whale, worm, snail, jellyfish;
        2: chicken, rooster, duck, penguin, owl, eagle, swan, flamingo, parrot, goose, crow, dove, turkey, peacock;
        4: zebra, horse, cow, pig, dog, cat, wolf, fox, lion, tiger, leopard, deer, goat, camel, giraffe, elephant,
        bear, panda, sheep, donkey, mouse, rabbit, crocodile, turtle, lizard, frog, rhinoceros, moose, llama;
        6: ant, bee, beetle, butterfly, ladybug, cricket, cockroach, fly, mosquito; 8: spider, scorpion;
        10: crab, lobster""",
    "young": """puppy/pup: dog; kitten: cat; calf: cow, elephant, whale, dolphin; foal: horse, zebra, donkey;
        lamb: sheep; chick: chicken, penguin; cub: lion, bear, tiger, polar bear, leopard; duckling: duck; piglet: pig;
        kid: goat; fawn: deer; gosling: goose; joey: kangaroo, koala; cygnet: swan; tadpole: frog;
        caterpillar/larva: butterfly; pup/cub: wolf, seal; kit/bunny/kitten: rabbit; owlet/chick: owl""",
    "color": """yellow: banana, lemon, corn, butter, sunflower, cheese; red: strawberry, cherries, tomato, fire truck,
        chili pepper; orange: carrot; green: lime, broccoli, cucumber, lettuce, peas, frog, cactus, crocodile;
        purple: eggplant; white: milk, salt, swan, polar bear, snowman, garlic; pink: flamingo, pig;
        black: crow; brown: chocolate, coconut; gray/grey: elephant, dolphin, rhinoceros""",
    "travels": """road/street/roads: car, taxi, bus, police car, ambulance, fire truck, truck, motorcycle, bicycle,
        motor scooter; rails/tracks/railway/track: train, tram; air/sky: airplane, helicopter; space/air: rocket;
        water/sea/ocean: sailboat, canoe, speedboat, ship, ferry""",
    "use": """hit nails/hammer nails/hammering nails/drive nails: hammer; cut wood/cutting wood/chop wood: axe, saw;
        turn screws/driving screws/drive screws: screwdriver; tighten bolts/turn bolts/turn nuts: wrench;
        cut paper/cutting/cut: scissors; climb/climbing: ladder; sweep/sweeping/sweep the floor: broom;
        carry water/hold water: bucket; open doors/unlock doors/open locks/unlocking: key;
        give light/light/light a room: light bulb, candle, flashlight; keep dry/keep off rain/stay dry: umbrella;
        tell time/telling time/tell the time: watch, hourglass; wake up/wake people up: alarm clock;
        take pictures/take photos/taking pictures: camera; listen to music/listen: radio, headphones;
        make calls/call/talk/call people: telephone, mobile phone; print/print documents/print paper: printer;
        see small things/look at small things/magnify: microscope; see stars/look at stars/observe stars: telescope;
        measure temperature/temperature: thermometer; give injections/inject medicine: syringe;
        listen to the heart/hear the heart: stethoscope; brush teeth/clean teeth/brushing teeth: toothbrush;
        wash hands/wash/clean: soap; take a bath/bathe/bathing: bathtub; sleep/sleeping: bed, tent;
        sit/sitting: chair; write/writing/draw: pencil, pen; paint/painting: paintbrush; draw/drawing/color: crayon;
        read/reading: books, newspaper; measure length/measuring/measure: ruler; find north/find directions/navigate:
        compass; hold a ship/stop a ship: anchor; put out fires/fight fires: fire extinguisher; eat/eating: spoon;
        make tea/pour tea: teapot; shave/shaving: razor; count/counting/calculate: abacus;
        carry clothes/pack clothes/travel: suitcase; see better/see/seeing: glasses; catch fish/fishing: fishing pole;
        carry books/carry things: backpack; send letters/mail letters: envelope; pull metal/attract metal/attract iron:
        magnet; make music/play music/music: guitar, violin, trumpet, drum, flute, piano;
        dig/digging: shovel; hear/hearing/listen: ear; smell/smelling/breathe: nose; think/thinking: brain;
        chew/bite/chewing: tooth""",
    "found": """kitchen: spoon, teapot; bathroom: toothbrush, bathtub, toilet, shower, soap, razor;
        bedroom/room: bed; hospital: syringe, stethoscope; living room: television; sky: sun, moon, star, cloud,
        rainbow; school/classroom: ruler, crayon; amusement park/park: ferris wheel, roller coaster;
        toolbox/workshop/garage: hammer, screwdriver, wrench; supermarket/store/shop: shopping cart;
        office: printer; face/head: nose; mouth: tooth; head/skull: brain""",
}

# from small to large in real life; things of one line are not compared
SIZES = tuple(
    tuple(name.strip() for name in line.split(","))
    for line in """ant, mosquito, ladybug, fly, bee, tooth, coin, pill, ring
        mouse, frog, egg, key, lemon, strawberry, chick, cookie, spoon, crab
        cat, rabbit, duck, chicken, owl, basketball, guitar, backpack, laptop
        lion, tiger, horse, cow, zebra, bear, motorcycle, bed, gorilla
        elephant, bus, truck, fire truck, rhinoceros
        airplane, train, ship, castle, stadium, whale
        mountain, volcano
        moon
        sun""".split("\n")
)


def _names(text: str) -> tuple[str, ...]:
    return tuple(dict.fromkeys(" ".join(name.split()) for name in text.split(",")))


def _read() -> tuple[dict[str, tuple[str, ...]], dict[str, dict[str, tuple[str, ...]]]]:
    kinds = {kind: _names(text) for kind, text in _KINDS.items()}
    facts = {relation: {} for relation in ("capital", "continent", "language", "category", *_BY_ANSWER)}
    flags = []
    for continent, countries in _COUNTRIES.items():
        for country in countries.split():
            name, capital, language = country.replace("_", " ").split(":")
            flags.append(f"flag of {name}")
            facts["capital"][flags[-1]] = tuple(capital.split("/"))
            facts["language"][flags[-1]] = tuple(language.split("/"))
            facts["continent"][flags[-1]] = (continent,)
    for kind, names in kinds.items():
        also = {"fruit": ("food",), "vegetable": ("food",), "drink": ("beverage",), "clothing": ("clothes",)}
        accepted = (kind, *also.get(kind, ())) if kind not in ("", "weather") else ()
        facts["category"] |= {name: accepted for name in names if accepted}
    for relation, text in _BY_ANSWER.items():
        for entry in " ".join(text.split()).split(";"):
            answers, names = entry.split(":")
            facts[relation] |= {name: tuple(answers.strip().split("/")) for name in _names(names)}
    return kinds | {"flag": tuple(flags)}, facts


KINDS, FACTS = _read()
KIND_OF = {name: kind for kind, names in KINDS.items() for name in names}
