"""The words that the training text of the embedded model is made of (recipes.tiny.pairs). Written for this project.

A noun is `word/plural < hypernym`. `~` marks a mass noun, which has no article and no plural. `!` at the end says that
the kinds of the word exclude each other.

An action is `verb and complement | manner | hypernym (a whole action) | who does it`. In a complement, {kind} stands
for a noun of that kind, and {} for a noun phrase without kinds.

`a = b` makes the word or action `a` a synonym of `b`.
"""

from __future__ import annotations


def parse_rows(table: str) -> list[str]:
    """Returns the rows of a table, without empty lines."""
    return [line.strip() for line in table.splitlines() if line.strip()]


def parse_cells(row: str, separator: str = "|") -> list[str]:
    """Returns the cells of a row."""
    return [cell.strip() for cell in row.split(separator)]


NOUNS = """
person/people
adult < person !
man/men < adult
woman/women < adult
child/children < person !
boy < child
girl < child
baby/babies < child
guy = man
lady/ladies = woman
kid = child
doctor < person
nurse < person
teacher < person
chef < person
farmer < person
soldier < person
student < person
worker < person
artist < person
painter < artist
musician < artist
singer < musician
guitarist < musician
dancer < artist
photographer < person
athlete < person
swimmer < athlete
runner < athlete
football player < athlete
policeman/policemen < person
firefighter < person
scientist < person
lawyer < person
driver < person
waiter < person
tourist < person
customer < person
patient < person
animal !
dog < animal
puppy/puppies < dog
poodle < dog
cat < animal
kitten < cat
horse < animal
pony/ponies < horse
cow < animal
sheep/sheep < animal
goat < animal
pig < animal
rabbit < animal
mouse/mice < animal
monkey < animal
elephant < animal
lion < animal
tiger < animal
bear < animal
bird < animal
duck < bird
parrot < bird
eagle < bird
fish/fish < animal
shark < fish
frog < animal
snake < animal
instrument !
guitar < instrument
piano < instrument
violin < instrument
flute < instrument
trumpet < instrument
drum < instrument
saxophone < instrument
sport ~ !
soccer ~ < sport
tennis ~ < sport
basketball ~ < sport
baseball ~ < sport
golf ~ < sport
hockey ~ < sport
volleyball ~ < sport
football ~ < sport
food ~
fruit ~ < food !
apple < fruit
banana < fruit
orange < fruit
pear < fruit
strawberry/strawberries < fruit
vegetable < food !
carrot < vegetable
potato/potatoes < vegetable
tomato/tomatoes < vegetable
onion < vegetable
pepper < vegetable
cucumber < vegetable
meat ~ < food
chicken ~ < meat
beef ~ < meat
pizza < food
sandwich/sandwiches < food
burger < food
cake < food
cookie < food
ice cream < food
bread ~ < food
rice ~ < food
pasta ~ < food
soup ~ < food
cheese ~ < food
salad < food
egg < food
chocolate ~ < food
meal < food
breakfast ~ < meal
lunch ~ < meal
dinner ~ < meal
drink !
water ~ < drink
coffee ~ < drink
tea ~ < drink
milk ~ < drink
juice ~ < drink
beer ~ < drink
wine ~ < drink
lemonade ~ < drink
vehicle !
car < vehicle
sports car < car
taxi < car
bus/buses < vehicle
truck < vehicle
van < vehicle
bike < vehicle
motorcycle < vehicle
train < vehicle
boat < vehicle
tractor < vehicle
plane < vehicle
automobile = car
bicycle = bike
airplane = plane
garment !
hat < garment
coat < garment
jacket < garment
shirt < garment
dress/dresses < garment
sweater < garment
skirt < garment
scarf/scarves < garment
uniform < garment
suit < garment
mask < garment
helmet < garment
text
book < text
novel < book
cookbook < book
newspaper < text
magazine < text
letter < text
poem < text
report < text
container !
box/boxes < container
bag < container
basket < container
bottle < container
bucket < container
cup < container
suitcase < container
toy
doll < toy
toy car < toy
kite < toy
ball < toy
tool !
hammer < tool
shovel < tool
saw < tool
knife/knives < tool
screwdriver < tool
furniture ~ !
chair < furniture
table < furniture
bed < furniture
couch/couches < furniture
desk < furniture
shelf/shelves < furniture
sofa = couch
plant
tree < plant
flower < plant
rose < flower
tulip < flower
building !
house < building
church/churches < building
school < building
hotel < building
hospital < building
castle < building
machine !
computer < machine
laptop < computer
phone < machine
camera < machine
radio < machine
washing machine < machine
telephone = phone
show
film < show
game < show
movie = film
door
window
fence
wall
picture
photo = picture
portrait < picture
key
stone
rock = stone
rope
ladder
umbrella
paper ~
wood ~
log < wood
hill
mountain
song
story/stories
clock
ticket
gift
present = gift
toothbrush/toothbrushes
lamp
bridge
street
road = street
room
kitchen
garden
yard = garden
river
glass/glasses
plate
"""

# The kinds of nouns that {thing} stands for.
THING_KINDS = "vehicle garment text container toy tool furniture building machine instrument plant food animal"

ACTIONS = """
move | moving | | person animal
walk | moving | move | person animal
stroll | moving | walk | person
run | moving | move | person animal
jog | moving | run | person
race | moving | run | person animal
jump | moving | move | person animal
crawl | moving | move | person animal
dance | moving | move | person
skate | moving | move | person
ski | moving | move | person
swim | moving | be in the water | person animal
be in the water | state | | person animal
ride {vehicle} | moving | move | person
ride a horse | moving | move | person
drive {vehicle} | moving | move | person
climb {hill} | moving | move | person
climb {tree} | moving | move | person
climb {ladder} | moving | move | person
chase {animal} | moving | move | person animal
chase {ball} | moving | move | child animal
exercise | moving | move | person
work out = exercise
do yoga | moving | exercise | person
lift weights | moving | exercise | person
play {sport} | moving | move | person
play | moving | move | person animal
sleep | resting | rest | person animal
be asleep = sleep
take a nap | resting | sleep | person
rest | resting | | person animal
relax = rest
be awake | awake | | person animal
sit | posture | | person animal
be seated = sit
stand | posture | | person animal
lie down | posture | | person animal
kneel | posture | | person
play {instrument} | hands | make music | person
make music | hands | make noise | person
read {text} | hands | look at something | person
write {text} | hands | | person
paint {picture} | hands | make art | person
draw {picture} | hands | make art | person
make art | hands | | person
cook {food} | hands | prepare food | person
bake {cake} | hands | prepare food | person
prepare food | hands | | person
make {food} | hands | prepare food | person
cut {vegetable} | hands | cut something | person
cut {fruit} | hands | cut something | person
cut {bread} | hands | cut something | person
cut {wood} | hands | cut something | person
cut something | hands | | person
slice {vegetable} | hands | cut something | person
slice {fruit} | hands | cut something | person
peel {vegetable} | hands | | person
wash {vehicle} | hands | clean something | person
wash {plate} | hands | clean something | person
wash {dog} | hands | clean something | person
clean {window} | hands | clean something | person
clean {room} | hands | clean something | person
clean something | hands | | person
brush {horse} | hands | clean something | person
fix {vehicle} | hands | | person
repair {vehicle} = fix {vehicle}
fix {machine} | hands | | person
build {building} | hands | build something | person
build {fence} | hands | build something | person
build something | hands | | person
push {vehicle} | hands | | person
pull {rope} | hands | | person
carry {container} | hands | carry something | person
carry {tool} | hands | carry something | person
carry {ladder} | hands | carry something | person
carry something | hands | | person
hold {container} | hands | hold something | person
hold {umbrella} | hands | hold something | person
hold {flower} | hands | hold something | person
hold {animal} | hands | hold something | person
hold something | hands | | person
throw {ball} | hands | | person
catch {ball} | hands | | person
kick {ball} | hands | | person
open {door} | hands | | person
open {container} | hands | | person
close {door} | hands | | person
close {container} | hands | | person
feed {animal} | hands | | person
pet {animal} | hands | touch something | person
touch something | hands | | person
buy {food} | hands | shop | person
buy {garment} | hands | shop | person
buy {ticket} | hands | shop | person
shop | hands | | person
use {machine} | hands | use something | person
use {tool} | hands | use something | person
use something | hands | | person
take {picture} | hands | | person
plant {tree} | hands | work in the garden | person
plant {flower} | hands | work in the garden | person
water {flower} | hands | work in the garden | person
work in the garden | hands | work | person
study | hands | work | person
type on {computer} | hands | use something | person
play cards | hands | play a game | person
play chess | hands | play a game | person
play video games | hands | play a game | person
play a game | hands | | person
wait | idle | | person
wait for {vehicle} | idle | wait | person
work | hands | | person
eat {food} | mouth | eat | person animal
eat | mouth | | person animal
eat something = eat
have {meal} = eat {meal}
drink {drink} | mouth | drink | person animal
drink | mouth | | person animal
drink something = drink
sing | voice | make noise | person
sing {song} | voice | sing | person
shout | voice | make noise | person
yell = shout
talk | voice | make noise | person
speak = talk
talk on {phone} | voice | talk | person
talk to {person} | voice | talk | person
tell {story} | voice | talk | person
whisper | voice | talk | person
bark | voice | make noise | dog
make noise | noise | | person animal
make a sound = make noise
be silent | silent | | person
be quiet = be silent
smile | face | | person
laugh | face | make noise | person
cry | face | | person
look at {thing} | gaze | look at something | person animal
look at {picture} | gaze | look at something | person
look at {animal} | gaze | look at something | person
look at something | gaze | | person animal
watch {show} | gaze | look at something | person
watch television | gaze | look at something | person
watch TV = watch television
listen to music | ears | listen | person
listen to the radio | ears | listen | person
listen | ears | | person
fly | moving | move | bird
hug {person} | hands | touch something | person
help {person} | hands | | person
follow {person} | moving | move | person animal
"""

# Manners of actions that are possible at the same time, and so neutral. Other manners exclude each other, apart from
# those of "be awake".
COMPATIBLE_MANNERS = """
posture: hands mouth voice noise face gaze ears idle silent
moving: voice noise face ears silent
hands: voice noise mouth face ears gaze posture silent
mouth: noise ears gaze posture hands face idle
voice: face posture moving hands gaze idle
noise: posture moving hands mouth face gaze ears idle voice
face: posture moving hands gaze ears idle voice mouth
gaze: posture mouth voice face idle hands ears silent
ears: posture moving hands mouth face idle gaze noise silent
idle: posture mouth voice face gaze ears silent noise
silent: posture moving hands gaze ears idle
state: moving face voice noise silent gaze posture idle
resting: posture
"""

# Where somebody does something. The first row of each group is the most general.
PLACES = """
outdoors !
outside = outdoors
in the park < outdoors
on the beach < outdoors
at the beach = on the beach
along the beach = on the beach
in the garden < outdoors
in the yard = in the garden
in the street < outdoors
on the street = in the street
on the road = in the street
in the forest < outdoors
in the woods = in the forest
in a field < outdoors
in the field = in a field
in the mountains < outdoors
by the river < outdoors
near the river = by the river
at the lake < outdoors
in the snow < outdoors
on the grass < outdoors
in the rain < outdoors
under a tree < outdoors
in front of the house < outdoors
behind the house < outdoors
at the bus stop < outdoors
at the zoo < outdoors
at a market < outdoors
indoors !
inside = indoors
in the house < indoors
at home = in the house
in the kitchen < in the house
in the bedroom < in the house
in the living room < in the house
in the bathroom < in the house
in the library < indoors
at school < indoors
in the classroom < at school
in a restaurant < indoors
in a bar < indoors
in a shop < indoors
in a store = in a shop
in the office < indoors
in the hospital < indoors
in the church < indoors
in a hotel < indoors
in the gym < indoors
in a museum < indoors
at the station < indoors
on the stage
at a party
at a wedding
"""

SPOTS = """
on the couch
on the sofa = on the couch
on a chair
on the bed
on the floor
on a bench
at the table
at a desk
"""

# No two adjectives of a row are true of the same thing. `=` joins synonyms. `*` says that one of the two must be true.
PERSON_ADJECTIVES = """
young = youthful | old = elderly
tall | short
happy = glad = cheerful | sad = unhappy
thin = slim | fat
rich = wealthy | poor
strong | weak
tired = exhausted
blond | dark-haired
famous | unknown
"""

ANIMAL_ADJECTIVES = """
big = large | small = little | huge
brown | black | white | gray
young | old
wet | dry
hungry
"""

THING_ADJECTIVES = """
red | blue | green | yellow | black | white | brown | gray | pink | orange | purple
big = large | small = little
new | old
heavy | light
clean | dirty
expensive | cheap
wooden | metal
"""

# Predicates after "is": nouns | adjectives as above.
STATES = """
door window shop store box gate bank museum library window | open * | closed = shut *
glass cup bottle box bag house room bus train fridge bucket | empty | full
soup coffee tea water weather room food oven bath | hot | cold | warm
street floor road dog towel shirt hair grass | wet | dry
car bus train bike boat horse | fast = quick | slow
box bag stone table suitcase book | heavy | light
hat coat car ticket house dress meal ring | expensive | cheap
kitchen shirt window plate room car floor street | clean | dirty
train bus plane guest teacher boy | early | late | on time
room kitchen street house night sky | dark | bright
hat car door coat ball flower wall bird | red | blue | green | yellow | black | white
dog cat horse cow rabbit | black | white | brown | gray
baby man child dog woman girl patient | asleep * | awake *
man woman boy girl child teacher dog | happy = glad | sad = unhappy
man woman boy girl teacher dancer | tall | short
man woman teacher soldier doctor dog | young | old
bird fish plant king dog soldier | alive * | dead *
test exam question game task job book | easy = simple | difficult = hard
film movie book story lesson song game | interesting | boring
answer sentence story statement news | true * | false *
street house city room music party machine | quiet = silent | loud = noisy
knife tool computer phone radio lamp watch | broken * | working *
road river street rope hair story film | long | short
river lake water pool hole | deep | shallow
food soup cake apple meal pizza | good = delicious | bad = terrible
work idea plan result weather day film trip | good = great | bad = terrible
bread chair bed stone pillow | soft | hard
man woman soldier athlete horse | strong | weak
student girl boy dog model child | clever = smart = intelligent | stupid
street bridge road place game | safe | dangerous
model program machine system method version | optimized = improved
model program computer system engine | fast = quick | slow
man woman doctor farmer king | rich = wealthy | poor
boy girl man nurse patient | sick = ill * | healthy = well *
city town river mountain park | famous | unknown
light television computer radio machine | on * | off *
"""

OPPOSITE_VERBS = """
win the game | lose the game
pass the exam | fail the exam
open the door | close the door
open the window | close the window
buy the house | sell the house
find the keys | lose the keys
arrive at the station | leave the station
love music | hate music
like the film | dislike the film
remember the name | forget the name
accept the offer | refuse the offer
turn on the light | turn off the light
turn on the television | turn off the television
start the engine | stop the engine
answer the question | ignore the question
come home | leave home
get up early | get up late
fill the glass | empty the glass
push the car | pull the car
clean the kitchen | leave the kitchen dirty
enter the room | leave the room
break the window | repair the window
catch the ball | drop the ball
catch the train | miss the train
"""

COMPARATIVES = """
tall taller | short shorter | person building tree
old older | young younger | person animal
fast faster | slow slower | vehicle animal person
big bigger | small smaller | animal building box ball room
heavy heavier | light lighter | container stone furniture
strong stronger | weak weaker | person animal
rich richer | poor poorer | person
expensive more expensive | cheap cheaper | vehicle garment ticket machine
long longer | short shorter | street river rope film
hot hotter | cold colder | drink soup room
loud louder | quiet quieter | street machine child
happy happier | sad sadder | person
"""

FEMALE_NAMES = "Anna Maria Julia Sarah Emma Lisa Laura Alice Helen Jane Kate Lucy Nina Sophie Mary Clara Eva Olivia"
MALE_NAMES = "Tom Peter John Paul David Mark James Daniel Robert Michael George Ben Jack Simon Martin Max Henry Leo"

RELATIVES = "brother sister friend son daughter cousin"
BELONGINGS = "car dog cat horse house bike book camera hat boat garden computer bag phone guitar watch key coat child"

REASONS = """
because it is late | because the weather is nice | because it is her birthday | because it is his birthday
because they are bored | because of the rain | because they have an exam | because they have time | because it is cold
for fun | for their friends | for the children | for money | for a competition | for a film | for the first time
with their father | with their mother | with a friend | with their friends | with some other people | with a neighbor
before dinner | after work | after school | in the morning | in the evening | at night | on Sunday | for two hours
while it is raining | while the sun is shining | while the others are watching | every day | again | today
without any help | to win a prize | to learn something | to make some money | to surprise a friend | to stay healthy
"""

ADVERBS = "quickly slowly | quietly loudly | happily sadly | carefully carelessly"

WEATHER = """
it is raining; it rains; the weather is rainy | it is sunny; the sun is shining; it is a sunny day \
  | it is snowing; the ground is getting white
it is cold; it is freezing | it is hot; it is very warm
it is day; it is light outside | it is night; it is dark outside
the weather is good; the weather is nice; it is a beautiful day | the weather is bad; the weather is terrible
it is windy; there is a strong wind | there is no wind; the air is still
it is early; it is early in the morning | it is late; it is late at night
it is Monday | it is Friday | it is Sunday
it is summer | it is winter | it is spring | it is autumn
"""

IRREGULAR = """
run ran run | swim swam swum | ride rode ridden | drive drove driven | sleep slept slept
take took taken | sit sat sat | stand stood stood | lie lay lain | kneel knelt knelt
make made made | read read read | write wrote written | draw drew drawn | cut cut cut
build built built | hold held held | throw threw thrown | catch caught caught | feed fed fed
buy bought bought | eat ate eaten | drink drank drunk | sing sang sung | speak spoke spoken
tell told told | fly flew flown | win won won | lose lost lost | sell sold sold
find found found | leave left left | forget forgot forgotten | come came come | get got got
break broke broken | have had had | do did done | go went gone | give gave given
say said said | know knew known | think thought thought | begin began begun | see saw seen
be was been | hear heard heard
"""
DOUBLED = "run swim jog sit cut stop hug pet shop chat get win begin drop put plan forget"
