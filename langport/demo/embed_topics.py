"""What the embedding demo model knows: topics, their concepts, and sentences that mean the same.

Data, not code. In a topic, `things`, `actions` and `qualities` hold concepts separated by commas; a slash
separates phrases with (nearly) the same meaning. A line that starts with `=` is a set of whole paraphrases
separated by `=`. An indented line continues the one before it.
"""

TOPICS = """
# pets
things: cat/kitten/kitty, dog/puppy/hound, rabbit/bunny, hamster, goldfish/pet fish, parrot/parakeet,
  leash/lead, pet food/kibble, litter box, vet/veterinarian, collar, cage, paw, tail, fur/coat of hair, pet
  owner
actions: feed the cat/give the cat its food, walk the dog/take the dog out, train a puppy/teach a puppy,
  brush the fur/comb the fur, adopt a kitten/take in a kitten, pet the rabbit/stroke the rabbit, play with
  the dog/throw a ball for the dog
qualities: furry/fluffy, playful/frisky, loyal/faithful, cuddly/snuggly, tame/gentle
= My cat is asleep on the sofa. = The kitten naps on the couch. = A kitty is sleeping on the settee.
= The dog barks at the mailman. = Our puppy is barking at the postman.
= The dog chased the ball. = A puppy ran after the ball.
= The cat purrs when you stroke it. = Kittens purr if you pet them.

# wild animals
things: lion/big cat, elephant, tiger, wolf/grey wolf, bear/grizzly, monkey/ape, giraffe, zebra, kangaroo,
  snake/serpent, crocodile/alligator, fox, deer/stag, jungle/rain forest, savanna/grassland, zoo/animal
  park, predator/hunter, herd, animal/beast/creature
actions: watch the lions/observe the lions, protect wildlife/save wild animals, visit the zoo/go to the zoo,
  track a wolf/follow a wolf, hunt prey/chase prey
qualities: wild/untamed, dangerous/fierce, endangered/threatened, nocturnal/active at night, spotted,
  striped
= Elephants have a long trunk. = The elephant has a very long nose.
= The lion is the king of the jungle. = Lions rule the jungle.
= Tigers hunt alone at night. = A tiger stalks its prey by itself in the dark.

# birds and insects
things: bird/feathered animal, eagle/hawk, owl, sparrow/finch, penguin, duck/duckling, swan/goose, nest,
  wing/feather, egg, bee/honeybee, butterfly/moth, ant, spider, mosquito/gnat, fly, beetle/bug/insect,
  worm/earthworm, hive/beehive
actions: feed the birds/put out seeds for the birds, build a nest/make a nest, lay eggs, fly south/migrate,
  collect nectar/gather nectar, spin a web/weave a web
qualities: feathered, winged, buzzing/humming, chirping/singing, tiny/minute
= Birds fly south for the winter. = In winter many birds migrate to warm countries.
= Bees make honey. = Honey is made by bees.
= A spider has eight legs. = Spiders walk on eight legs.

# sea life
things: fish, shark/great white shark, whale/humpback whale, dolphin/porpoise, octopus/squid, crab/lobster,
  coral reef/reef, ocean/sea, wave/breaker, seaweed/kelp, jellyfish, turtle/tortoise, seal/sea lion,
  salmon/trout, fin, aquarium/fish tank, submarine, tide
actions: swim in the ocean/swim in the sea, dive to the reef/go scuba diving, catch a fish/go fishing, watch
  whales/look for whales, explore the deep sea
qualities: deep, salty/briny, slippery/slimy, aquatic/marine
= The whale is the largest animal in the sea. = No sea creature is bigger than a whale.
= Dolphins are clever swimmers. = A dolphin is a smart animal that swims.

# farming
things: farmer/grower, cow/cattle/calf, pig/hog/piglet, sheep/lamb, goat, horse/pony/foal,
  chicken/hen/rooster, tractor, barn/stable, field/meadow/pasture, crop/harvest, hay/straw, wheat/grain,
  corn/maize, soil/earth/dirt, fence, plough/plow, fertilizer/manure
actions: milk the cow, plant the seeds/sow the seeds, harvest the wheat/bring in the wheat, ride a horse/go
  riding, feed the chickens/give grain to the chickens, shear the sheep, water the crops/irrigate the fields
qualities: rural/country, fertile/rich, organic/grown without chemicals, ripe/ready to pick
= The farmer grows wheat in the field. = Wheat is grown on the farm.
= Cows give milk. = Milk comes from cows.

# gardening
things: garden/yard, flower/blossom/bloom, rose, tulip/daffodil, tree/oak/maple, leaf/foliage, grass/lawn,
  bush/shrub/hedge, seed/seedling, root, weed, spade/shovel, watering can, greenhouse, plant/herb,
  pot/flowerpot, branch/twig, forest/woods, gardener
actions: plant a tree/put a tree in the ground, water the flowers/give the flowers water, mow the lawn/cut
  the grass, pull the weeds/remove weeds, rake the leaves/sweep up the leaves, trim the hedge/prune the
  bushes, grow tomatoes/raise tomatoes, dig a hole
qualities: green/leafy, blooming/flowering, fragrant/sweet-smelling, overgrown, shady
= Roses need sun and water. = Give your roses plenty of light and water.
= The leaves turn red in autumn. = Foliage changes colour in the fall.

# baking
things: bread/loaf, dough/batter, cake/sponge cake, cookie/biscuit, flour, yeast, sugar/icing sugar, butter,
  oven, baker/pastry cook, pie/tart, roll/bun, crust, bakery/bread shop, baking powder/baking soda,
  muffin/cupcake, pastry/croissant, chocolate cake/brownie, rolling pin, cream/frosting, salt
actions: bake bread/make bread, knead the dough/work the dough, mix the flour and water/combine flour with
  water, bake a cake/make a cake, preheat the oven/heat the oven, let the dough rise/leave the dough to
  rise, whisk the eggs/beat the eggs, roll out the pastry, decorate the cake/frost the cake
qualities: crusty/crisp, freshly baked/straight from the oven, sweet/sugary, golden brown,
  sourdough/leavened
= Mix flour and yeast, then let the dough rest. = Combine the yeast with flour and leave the dough to stand.
= The loaf is baking in the oven. = Bread is in the oven now.
= You need sugar, butter, eggs and flour for a cake. = A cake is made of flour, eggs, butter and sugar.

# cooking
things: soup/broth/stew, rice, pasta/noodles/spaghetti, sauce/gravy, pan/frying pan, pot/saucepan,
  knife/blade, chef/cook, recipe/cooking instructions, kitchen, stove/cooker, onion/garlic, potato/potatoes,
  tomato, carrot, meat/beef/steak, pepper/spice, olive oil/oil, salad/green salad, egg/eggs, cheese/cheddar,
  mushroom, ingredient
actions: boil the rice/cook the rice, fry an egg/cook an egg, chop the onions/cut the onions, stir the soup,
  cook dinner/make dinner/prepare supper, grill the meat/barbecue the meat, peel the potatoes, taste the
  sauce/try the sauce, season the meat/add salt and pepper to the meat, roast a chicken
qualities: tasty/delicious/yummy, spicy/hot, raw/uncooked, bitter/sour, salty, burnt/overcooked
= Dinner is ready. = The evening meal is on the table. = Supper is served.
= Boil the pasta for ten minutes. = Cook the spaghetti in boiling water for ten minutes.
= This soup has too much salt. = The broth is too salty.

# fruit and drinks
things: apple, banana, orange/tangerine, lemon/lime, strawberry/raspberry/berry, grape, peach/apricot, pear,
  cherry, pineapple/mango, melon/watermelon, coffee/espresso/cup of coffee, tea/cup of tea, juice/fruit
  juice, water/mineral water, milk, beer/lager/ale, wine/red wine, lemonade/soda/soft drink, cup/mug, glass,
  bottle
actions: drink coffee/have a cup of coffee, make tea/brew tea, squeeze an orange/make orange juice, eat an
  apple/bite into an apple, pour the wine/fill the glass with wine, peel a banana
qualities: juicy, refreshing/thirst-quenching, ripe, chilled/ice-cold, sweet
= I drink coffee every morning. = Each morning I have a cup of coffee.
= Would you like tea or coffee? = Can I offer you coffee or tea?
= Apples and pears are healthy. = Eating pears and apples is good for you.

# restaurants
things: restaurant/diner/eatery, waiter/waitress/server, menu/list of dishes, table for two, bill/check,
  tip, pizza/pizza slice, burger/hamburger, sandwich/toast, fries/chips, dessert/ice cream/pudding,
  breakfast/brunch, lunch/midday meal, dinner/supper/evening meal, snack/bite to eat, cafe/coffee shop,
  fork/spoon, plate/dish, takeaway/delivery food
actions: book a table/reserve a table, order a pizza/ask for a pizza, pay the bill/settle the check, eat
  out/go to a restaurant, have lunch/eat lunch, skip breakfast/miss breakfast
qualities: hungry/starving, full/stuffed, vegetarian/meat-free, vegan, gourmet/fancy
= I am very hungry. = I am starving. = I need something to eat.
= Can we have the bill, please? = We would like to pay now.
= Where can I get a good pizza? = Which place serves the best pizza?

# weather
things: rain/rainfall/shower, snow/snowfall, sun/sunshine, wind/breeze, storm/thunderstorm/tempest,
  cloud/overcast sky, fog/mist, lightning/thunder, temperature/degrees, forecast/weather report,
  umbrella/raincoat, heat/heat wave, frost/ice, hurricane/cyclone/tornado, climate, rainbow, flood/flooding,
  drought/dry spell
actions: check the forecast/look up the weather report, carry an umbrella/bring an umbrella, wait for the
  rain to stop, shovel the snow/clear the snow, enjoy the sunshine/sit in the sun
qualities: rainy/wet, sunny/bright, cold/chilly/freezing, hot/boiling/scorching, windy/breezy, cloudy/grey,
  foggy/misty, humid/damp, warm/mild
= It is raining outside. = It rains. = Rain is falling.
= Will it rain tomorrow? = Is rain expected tomorrow? = What will the weather be like tomorrow?
= It is very cold today. = Today is freezing. = The temperature is low today.
= Take an umbrella with you. = Don't forget your umbrella.
= The sun is shining. = It is a sunny day.

# seasons and nature
things: spring/springtime, summer/summertime, autumn/fall, winter/wintertime, mountain/hill/peak,
  river/stream/creek, lake/pond, desert/sand dunes, valley/canyon, island/isle, waterfall/cascade,
  volcano/lava, cave/cavern, beach/seashore/coast, rock/stone, sky, horizon, sunrise/dawn, sunset/dusk,
  landscape/scenery, earthquake
actions: climb the mountain/go up the mountain, cross the river/get over the river, walk in the
  forest/stroll through the woods, watch the sunset/see the sun go down, camp by the lake/pitch a tent by
  the lake, lie on the beach/relax on the beach
qualities: steep, rocky/stony, peaceful/calm/quiet, beautiful/lovely/pretty, natural
= Summer is the hottest season. = The warmest time of the year is summer.
= The river flows into the sea. = This stream runs down to the ocean.

# football
things: football/soccer, goal, goalkeeper/goalie, striker/forward, referee/umpire, penalty/penalty kick,
  match/game, team/squad/club, coach/manager, stadium/arena, league/championship, world cup/tournament,
  pitch/playing field, fan/supporter, ball, player/footballer, kick/shot, score/result, offside
actions: score a goal/find the net, win the match/beat the other team, lose the game/be defeated, pass the
  ball/play the ball to a team mate, kick the ball/shoot the ball, watch the game/see the match, support the
  team/cheer for the team, save a penalty
qualities: victorious/winning, defeated/beaten, offside, unbeaten/undefeated
= The team won the cup final. = Our side took the trophy. = They were the winners of the final.
= The striker scored two goals. = Two goals were scored by the forward.
= Who won the match last night? = What was the result of yesterday's game?

# sports
things: tennis/tennis match, basketball, baseball, golf, swimming/swim, running/jogging, marathon/long race,
  cycling/bike racing, boxing/fight, skiing/snowboarding, hockey/ice hockey, racket, gym/fitness centre,
  athlete/sportsman, medal/gold medal, olympic games/olympics, race, yoga/stretching,
  workout/exercise/training, volleyball, gymnastics
actions: play tennis/have a game of tennis, run a marathon/take part in a marathon, lift weights/do weight
  training, swim laps/swim in the pool, exercise every day/work out daily, win a medal/earn a medal, ride a
  bike/cycle, go skiing/ski down the slope
qualities: athletic/sporty, fit/in good shape, exhausted/worn out, competitive
= She won the gold medal. = She came first. = First place went to her.
= I go jogging in the park. = I run through the park.
= Exercise keeps you fit. = Working out is good for your body.

# music
things: guitar/electric guitar, piano/keyboard, violin/fiddle, drum/drums, flute/clarinet,
  trumpet/saxophone, song/tune/melody, singer/vocalist, band/group, concert/gig/live show,
  orchestra/symphony, album/record, lyrics/words of the song, choir/chorus, jazz/blues, rock music/rock and
  roll, opera, composer/songwriter, rhythm/beat, musician, note/chord, dance/dancing
actions: play the guitar/strum the guitar, sing a song/perform a song, listen to music/hear music, practice
  the piano/rehearse on the piano, write a song/compose a song, dance to the music/move to the music, go to
  a concert/attend a concert, record an album
qualities: loud/noisy, melodic/tuneful, catchy, musical, acoustic, off-key/out of tune
= She plays the violin very well. = She is a talented fiddle player.
= Turn the music down, please. = The music is too loud. = Please lower the volume.
= What is your favourite song? = Which tune do you like best?

# films and television
things: film/movie/motion picture, actor/actress/movie star, director/film maker, cinema/movie theater,
  scene/shot, television/tv, series/tv show, episode, comedy/funny film, horror film/scary movie,
  documentary, screen, ticket, popcorn, plot/story line, trailer/preview, camera, audience/viewers,
  cartoon/animation, theatre/stage play
actions: watch a movie/see a film, go to the cinema/go to the movies, shoot a scene/film a scene, turn on
  the television/switch on the tv, play a role/act a part, stream a series/binge a show
qualities: funny/hilarious, scary/frightening, boring/dull, exciting/thrilling, sad/moving, animated
= The movie was really boring. = I found the film very dull.
= Who directed this film? = Who is the director of the movie?

# books and writing
things: book/novel, author/writer, story/tale, poem/poetry/verse, library, page, chapter, reader, publisher,
  newspaper/daily paper, magazine/journal, letter, pen/pencil, dictionary, bookshop/bookstore, fairy
  tale/fable, hero/main character, essay/article, diary, comic/comic book, title, editor
actions: read a book/read a novel, write a story/pen a tale, borrow a book/take out a book, turn the page,
  publish a novel, tell a story/narrate a tale, finish the chapter
qualities: literary, fictional/made-up, well-written, gripping/hard to put down, long/lengthy, short/brief
= I love reading novels. = Reading books is my favourite hobby.
= Who wrote this book? = Who is the author of this novel?
= The library closes at six. = You can borrow books until six o'clock.

# art
things: painting/picture, painter/artist, sculpture/statue, museum/gallery, drawing/sketch,
  colour/color/hue, brush/paintbrush, canvas, portrait, exhibition/show, photograph/photo/snapshot,
  photographer, red/crimson/scarlet, blue/azure, yellow/gold, green/emerald, purple/violet, black/dark,
  white, ceramics/pottery, masterpiece, design, craft
actions: paint a picture/make a painting, draw a portrait/sketch a face, visit a museum/go to a gallery,
  take a photo/take a picture, carve a statue/sculpt a statue, mix colours
qualities: colourful/bright, abstract, artistic/creative, famous/well-known, black and white
= The museum shows modern art. = You can see contemporary paintings at the gallery.
= Blue is my favourite colour. = The colour I like most is blue.

# travel
things: hotel/inn/hostel, flight/plane trip, airport/terminal, passport/travel document,
  suitcase/luggage/baggage, tourist/traveller/visitor, holiday/vacation, beach resort/seaside resort,
  map/city map, guide/tour guide, visa, souvenir, journey/trip/voyage, border/customs, ticket/boarding pass,
  cruise/boat trip, destination, backpack/rucksack, camping/tent
actions: book a flight/reserve a plane ticket, pack a suitcase/pack the bags, travel abroad/go to another
  country, visit a city/go sightseeing, stay at a hotel/spend the night at a hotel, plan a holiday/plan a
  vacation, check in at the airport, renew a passport
qualities: foreign/overseas, touristy/full of tourists, relaxing, adventurous, far away/distant
= Our flight was cancelled. = The airline cancelled our plane.
= I lost my luggage at the airport. = My suitcase went missing at the terminal.
= How much is a room for one night? = What does the hotel charge per night?

# transport
things: car/automobile, bus/coach, train/railway, bicycle/bike, motorcycle/motorbike, truck/lorry, taxi/cab,
  ship/boat/ferry, airplane/aircraft/plane, road/street/highway, bridge, traffic/traffic jam,
  driver/motorist, station/stop, subway/underground/metro, engine/motor, wheel/tyre, petrol/gasoline/fuel,
  garage/parking lot, helicopter, traffic light, seat belt
actions: drive a car/drive an automobile, catch the bus/take the bus, miss the train/be late for the train,
  park the car/leave the car, repair the engine/fix the motor, change a tyre, ride the subway/take the
  metro, call a taxi/get a cab, fill the tank
qualities: crowded/packed, delayed/late, electric/battery powered, parked, fast/quick/speedy
= When does the next train leave? = What time is the next train?
= The car won't start. = My automobile does not start.
= Traffic is terrible this morning. = The roads are jammed this morning.

# countries and cities
things: city/town, village/small town, country/nation/state, capital/capital city, continent, europe, asia,
  africa, america/united states, london, paris, tokyo, berlin, rome, madrid, beijing, moscow, new york,
  inhabitant/citizen, population/number of people, neighbourhood/district, square/plaza, tower/skyscraper,
  castle/palace, flag
actions: live in the city/dwell in town, move to the countryside/move to the country, explore the old
  town/discover the old town, cross the border
qualities: european, asian, african, american, urban/metropolitan, densely populated
= London is a large city in England. = England's biggest city is London.
= How many people live in Tokyo? = What is the population of Tokyo?

# computers
things: computer/pc, laptop/notebook computer, keyboard, mouse, monitor/display, hard disk/hard drive/ssd,
  processor/cpu/chip, memory/ram, printer, operating system, file/document, folder/directory, cable/wire,
  usb stick/flash drive, battery/charger, graphics card/gpu, server/machine, backup/copy, hardware, tablet,
  robot
actions: restart the computer/reboot the machine, install the software/set up the software, save the
  file/store the document, delete the folder/remove the directory, print a document, back up the data/make a
  backup, plug in the cable/connect the cable, upgrade the memory/add more ram
qualities: slow/sluggish, digital, broken/out of order, compatible, portable
= My computer is very slow. = The pc has become sluggish.
= The printer does not work. = I cannot print anything.
= How do I install this software? = How is this program set up?

# programming
things: program/software/application, code/source code, bug/error/defect, function/method/subroutine,
  variable, python/python code, java, loop, compiler, programmer/developer/software engineer, database/data
  store, algorithm, unit test/test case, library/package/module, exception/stack trace, array/list, string,
  git/version control, api/interface, web server/backend, thread/process, syntax
actions: fix a bug/debug the code/correct an error, write a function/implement a method, run the
  tests/execute the tests, sort a list/order an array, parse a file/read a file, deploy the
  application/release the software, compile the program/build the program, review the code/check the code,
  query the database
qualities: object-oriented, asynchronous, buggy/faulty, open source/free software, recursive, well tested
= The program crashes at start. = The application fails when it is launched.
= How do I sort a list in Python? = What is the way to order an array with Python?
= This function returns an error. = Calling the method raises an exception.

# internet
things: website/web page/site, browser/web browser, email/electronic mail, password/login, internet/web/net,
  network/wifi/wireless network, social media/social network, search engine, link/url, video/clip,
  blog/post, chat/message, spam/junk mail, hacker/attacker, virus/malware, account/profile, download, cloud
  storage, cookie banner, firewall, router, online shop/web shop
actions: reset my password/change my password, send an email/write an email, browse the web/surf the
  internet, log in to my account/sign in to my account, download a file/fetch a file, upload a photo/post a
  picture, block spam/filter junk mail, connect to the wifi/join the wireless network, search the web/look
  something up online
qualities: online/connected, offline/disconnected, secure/safe, encrypted, hacked/compromised, viral
= I forgot my password. = I cannot remember my login. = My password is lost.
= The internet connection is down. = There is no network. = We are offline.
= Please send me an email. = Write to me by electronic mail.

# artificial intelligence
things: artificial intelligence/ai, machine learning/statistical learning, neural network/deep network,
  language model/large language model, training data/data set, chatbot/assistant, embedding/vector,
  prompt/instruction, token, gpu cluster, accuracy, translation/machine translation, speech recognition,
  image recognition/computer vision, inference, parameter/weight, benchmark
actions: train a model/fit a model, translate a sentence/translate a text, recognise a face/identify a face,
  classify images/sort images, serve a model/host a model, answer questions/respond to questions
qualities: intelligent/smart/clever, trained, accurate/precise, multilingual, generative
= The model was trained on a lot of text. = Large amounts of text were used to train the network.
= Embeddings map text to vectors. = A text becomes a vector by embedding it.

# telephone
things: phone/telephone/smartphone, mobile/cell phone, call/phone call, text message/sms,
  voicemail/answering machine, ringtone, phone number, app, sim card, touch screen, contact,
  headphones/earphones, signal/reception
actions: call a friend/phone a friend/ring a friend, answer the phone/pick up the phone, send a text/send a
  message, charge the phone/charge the battery, hang up/end the call
qualities: busy/engaged, ringing, silent/muted
= Please call me back later. = Ring me again later on.
= The phone is ringing. = Someone is calling.

# money
things: money/cash, bank/savings bank, loan/credit, account/bank account, dollar/euro/pound, coin/banknote,
  credit card/debit card, tax/taxes, salary/wage/pay, investment/stocks/shares, budget/spending plan, debt,
  interest rate/interest, insurance, mortgage/home loan, inflation/rising prices, pension, wallet/purse,
  fee/charge, stock market/stock exchange, profit/gain, loss
actions: save money/put money aside, open an account, pay the taxes, borrow money/take out a loan, invest in
  stocks/buy shares, withdraw cash/take out cash, earn money/make money, transfer money/send money, exchange
  currency/change money
qualities: expensive/costly/pricey, cheap/inexpensive/low-cost, rich/wealthy, poor/broke, free/at no cost,
  financial
= How much does it cost? = What is the price? = How expensive is it?
= He lent me fifty dollars. = I borrowed fifty dollars from him.
= The interest rate went up. = Banks raised the rate of interest.

# shopping
things: shop/store, supermarket/grocery store, customer/shopper/buyer, price/cost, discount/sale/special
  offer, receipt, shopping bag, cashier/shop assistant, order, parcel/package, refund/money back,
  market/bazaar, product/goods/item, gift/present, groceries, shopping list, warehouse, brand
actions: buy a gift/purchase a present, return the product/send the item back, track my order/follow my
  parcel, ask for a refund/get my money back, compare prices/look for the best price, go shopping/go to the
  shops, cancel the order, deliver the parcel/bring the package
qualities: on sale/reduced, sold out/out of stock, available/in stock, second-hand/used, brand new/new
= Where is my order? = When will my parcel arrive? = My package has not come yet.
= I want my money back. = Please give me a refund.
= The shop is closed on Sunday. = On Sundays the store does not open.

# work and office
things: job/work/employment, office/workplace, boss/manager/supervisor, colleague/coworker, employee/worker,
  meeting/conference, contract/agreement, company/firm/business, career, interview/job interview, resume/cv,
  deadline/due date, project, report, desk, presentation/slides, customer service, strike, promotion,
  factory/plant, team leader, start-up
actions: apply for a job/look for work, attend a meeting/go to a meeting, sign the contract, hire
  staff/employ people, quit the job/resign, finish the report/complete the report, work from home/work
  remotely, fire an employee/dismiss a worker, manage a project/run a project
qualities: unemployed/jobless/out of work, busy/occupied, professional, productive/efficient, self-employed,
  retired
= The meeting starts at nine. = We meet at nine o'clock.
= She found a new job. = She has new work. = A company hired her.
= He works too much. = He spends too many hours in the office.

# school
things: school/college, teacher/instructor/tutor, student/pupil/learner, lesson/class, homework/assignment,
  exam/test/examination, university, classroom, professor/lecturer, degree/diploma, course/training course,
  blackboard/whiteboard, mathematics/maths/math, geography, language course, textbook/schoolbook,
  kindergarten/nursery school, grade/mark, lecture, scholarship, headmaster/principal
actions: study for the exam/prepare for the test, do the homework/finish the assignment, learn a
  language/study a language, pass the exam/succeed in the test, fail the test/flunk the exam, teach a
  class/give lessons, take notes, go to school/attend school
qualities: educated/learned, difficult/hard/challenging, easy/simple, academic
= The pupils listen to the teacher. = Students are paying attention to their instructor.
= I have to study for my exam. = I must prepare for the test.

# health
things: doctor/physician, nurse, hospital/clinic, medicine/drug/medication, pill/tablet, headache/migraine,
  fever/high temperature, cold/flu/influenza, cough/sore throat, pain/ache, disease/illness/sickness,
  patient, injury/wound, broken leg/fracture, vaccine/injection, allergy, dentist/tooth doctor, toothache,
  surgery/operation, prescription, pharmacy/chemist, ambulance, infection/virus, blood pressure, diabetes,
  cancer/tumour, bandage/plaster
actions: see a doctor/consult a physician, take the medicine/swallow a pill, treat the patient, cure a
  disease/heal an illness, call an ambulance, get vaccinated/get a vaccine, measure the temperature, recover
  from the flu/get over the flu
qualities: sick/ill/unwell, healthy/well, painful/sore, contagious/infectious, medical, injured/hurt/wounded
= I have a headache. = My head hurts. = My head is aching.
= He has a fever and a cough. = He coughs and his temperature is high.
= You should see a doctor. = Go and consult a physician.
= I feel sick. = I am not feeling well. = I am ill.

# body
things: hand/fist, foot/feet, head, eye/eyes, ear/ears, nose, mouth/lips, tooth/teeth, hair, arm/elbow,
  leg/knee, heart, lung/lungs, brain/mind, bone/skeleton, skin, muscle, stomach/belly/tummy, blood,
  finger/thumb, back/spine, neck/throat, face, shoulder, liver/kidney
actions: wash my hands/clean my hands, brush my teeth/clean my teeth, close my eyes/shut my eyes, bend the
  knee, breathe deeply/take a deep breath, comb my hair
qualities: tall, short, strong/muscular, weak/feeble, blind, deaf, bald, slim/thin, overweight/fat
= The heart pumps blood through the body. = Blood is moved around the body by the heart.
= She has blue eyes and long hair. = Her hair is long and her eyes are blue.

# clothes
things: shirt/blouse, trousers/pants/jeans, dress/gown, skirt, shoe/shoes/boots, hat/cap, coat/jacket,
  sock/socks, glove/gloves/mittens, scarf/shawl, sweater/pullover/jumper, suit/tie, belt, button/zip,
  pocket, fashion/style, cotton/wool/silk, ring/necklace/jewellery, glasses/spectacles, underwear, uniform,
  sunglasses, handbag
actions: wear a hat/put on a hat, wash the clothes/do the laundry, iron the shirt/press the shirt, try on
  the shoes, sew a dress/make a dress, knit a sweater, take off the coat/remove the coat
qualities: fashionable/stylish/trendy, tight, loose/baggy, woollen, elegant/smart, striped
= These shoes are too small. = The boots are too tight.
= She wears a red dress. = She is dressed in a crimson gown.

# house and home
things: house/home/building, flat/apartment, room/chamber, door/gate, window/pane, roof/ceiling,
  floor/ground, mat/rug/carpet, sofa/couch/settee, chair/stool/armchair, table/desk, bed/mattress,
  lamp/light, kitchen, bathroom/toilet, shower/bath, garage, stairs/staircase, wall, curtain/blind,
  fridge/refrigerator, washing machine, vacuum cleaner, cupboard/cabinet/wardrobe, mirror, pillow/cushion,
  blanket/quilt, key/lock, landlord, rent, furniture, fireplace/chimney
actions: clean the house/tidy up the house, wash the dishes/do the dishes, paint the wall, open the window,
  lock the door/shut the door, pay the rent, move to a new flat/move into a new apartment, make the bed,
  vacuum the carpet/hoover the rug, repair the roof/fix the roof, turn off the light/switch off the lamp
qualities: cosy/comfortable, clean/tidy/neat, dirty/messy, furnished, spacious/roomy, empty/vacant
= The lamp is on the table. = There is a light on the desk.
= We rent a flat with two rooms. = Our apartment has two rooms and we pay rent.

# family and people
things: mother/mum/mom, father/dad/daddy, parents/mother and father, brother, sister,
  grandmother/granny/grandma, grandfather/grandpa, child/kid, baby/infant/newborn, son, daughter,
  uncle/aunt, cousin/relative, husband/spouse, wife/bride, friend/buddy/pal, neighbour/neighbor,
  man/guy/gentleman, woman/lady, boy/lad, girl, wedding/marriage, divorce/separation, birthday/birthday
  party, twins, family/relatives, crowd/people, couple
actions: marry my girlfriend/get married, visit my grandmother/call on granny, raise children/bring up kids,
  have a baby/give birth, celebrate a birthday/have a birthday party, look after the children/take care of
  the kids, invite friends/have friends over
qualities: young/youthful, old/elderly/aged, married, single/unmarried, pregnant/expecting a baby,
  adult/grown-up, kind/friendly/nice
= My sister is getting married. = There will be a wedding for my sister.
= The kids are playing in the park. = Children play in the park.

# emotions
things: joy/happiness/delight, sadness/sorrow/grief, anger/rage/fury, fear/terror/fright, love/affection,
  hate/hatred, hope, surprise/astonishment, shame/embarrassment, pride, jealousy/envy, stress/pressure,
  loneliness, boredom, smile/grin, laughter/laugh, tear/tears, mood/feeling/emotion, kiss/hug, depression
actions: cry/weep/shed tears, laugh/giggle/chuckle, smile/grin, calm down/relax, fall in love, miss you/long
  for you, cheer up/feel better, worry about it/be anxious about it
qualities: happy/glad/cheerful/joyful, sad/unhappy/sorrowful, angry/furious/mad, afraid/scared/frightened,
  tired/sleepy/weary, lonely/alone, excited/thrilled, bored, nervous/anxious/worried, proud,
  surprised/amazed, disappointed/let down
= I am so happy today. = Today I feel great joy. = What a joyful day for me.
= He was very angry with me. = He was furious at me.
= I love you. = You are dear to me. = My heart is yours.
= I am tired and want to sleep. = I am sleepy and would like to go to bed.

# greetings
things: greeting/salutation, good morning, good evening, farewell/goodbye, handshake, thank you note/thanks,
  apology/excuse, welcome, introduction, compliment
actions: say hello/greet people, say goodbye/bid farewell, say thank you/express thanks, apologise/say
  sorry, introduce myself/say my name, shake hands
qualities: polite/courteous, rude/impolite, grateful/thankful, sorry/apologetic, welcome
= Hello! = Hi there! = Hey! = Good day! = Greetings!
= How are you? = How are you doing? = How is it going? = How do you do?
= Goodbye! = Bye bye! = See you later! = Farewell!
= Thank you very much. = Thanks a lot. = Many thanks. = I am grateful.
= I am sorry. = I apologise. = Please forgive me. = Excuse me.
= What is your name? = Who are you? = What are you called?
= Nice to meet you. = Pleased to make your acquaintance.
= Yes, of course. = Sure. = Certainly. = Okay.
= No, thank you. = I would rather not. = Better not.
= Good night. = Sleep well. = Sweet dreams.

# time and weekdays
things: monday, tuesday, wednesday, thursday, friday, saturday, sunday, weekend/saturday and sunday,
  week/seven days, month, year/twelve months, january, february, march, april, june, july, august,
  september, october, november, december, hour/sixty minutes, minute/sixty seconds, second,
  calendar/schedule, clock/watch/alarm clock, midnight, noon/midday, century/hundred years,
  appointment/date, yesterday, tomorrow, christmas/xmas, easter, new year, holiday/day off
actions: set the alarm/set the alarm clock, wake up early/get up early, be on time/be punctual, make an
  appointment/arrange a date, postpone the meeting/put off the meeting, waste time, wait an hour
qualities: early, late/tardy, weekly/every week, daily/every day, annual/yearly/every year, monthly/every
  month, punctual/on time
= What time is it? = Can you tell me the time? = What does the clock say?
= Today is Monday. = It is Monday today.
= See you next week. = We will meet again in a week.
= The train arrives at noon. = At midday the train gets in.

# physics
things: physics/physical science, quantum mechanics/quantum theory/quantum physics, field theory/quantum
  field, relativity/theory of relativity, gravity/gravitation, atom, electron/proton/neutron,
  particle/elementary particle, energy, force, speed/velocity, mass, light/photon, laser, magnet/magnetic
  field, electricity/electric current, heat/thermodynamics, wave/oscillation, sound, nuclear power/nuclear
  energy, radiation/radioactivity, physicist, vacuum, lens, equation/formula
actions: measure the speed/determine the velocity, split the atom, generate electricity/produce electric
  power, accelerate particles/speed up particles, prove the theory/verify the theory, calculate the force
qualities: magnetic, electric/electrical, radioactive, theoretical, subatomic, transparent
= Light is faster than sound. = Sound travels slower than light.
= Einstein developed the theory of relativity. = Relativity is a theory by Einstein.
= Electrons move around the nucleus. = The nucleus of an atom is surrounded by electrons.

# chemistry and biology
things: chemistry/chemical science, molecule, chemical reaction, oxygen, hydrogen, carbon/carbon dioxide,
  acid, metal/iron/steel, gold/silver, copper/aluminium, plastic, gas, liquid/fluid, laboratory/lab,
  experiment, biology/life science, cell/living cell, gene/dna, evolution/natural selection,
  bacteria/microbe/germ, species, protein/enzyme, microscope, photosynthesis, organism/living thing,
  dinosaur/fossil, scientist/researcher
actions: mix the chemicals/combine the chemicals, do an experiment/carry out an experiment, study
  cells/examine cells, heat the liquid/warm the fluid, dissolve the salt, discover a species/find a new
  species
qualities: chemical, acidic, poisonous/toxic, biological, genetic/hereditary, microscopic
= Water consists of hydrogen and oxygen. = Hydrogen and oxygen make water.
= Plants turn sunlight into energy. = Photosynthesis lets plants use the light of the sun.

# space
things: space/universe/cosmos, star, planet, moon, sun, galaxy/milky way, earth/our planet, mars/red planet,
  jupiter/saturn, venus/mercury, rocket/spacecraft/spaceship, astronaut/cosmonaut, telescope/observatory,
  comet/asteroid/meteor, black hole, orbit, astronomy/study of the stars, satellite, space station,
  alien/extraterrestrial, eclipse, solar system
actions: launch a rocket/send up a rocket, fly to the moon/travel to the moon, look at the stars/watch the
  night sky, land on mars/touch down on mars, orbit the earth/circle the earth
qualities: solar, lunar, weightless, interstellar, astronomical
= The moon goes around the earth. = Our planet is orbited by the moon.
= Jupiter is the largest planet. = No planet is bigger than Jupiter.
= Neil Armstrong walked on the moon. = The first man on the moon was Armstrong.

# mathematics
things: number/figure/digit, addition/sum, subtraction/difference, multiplication/product,
  division/quotient, geometry, algebra, triangle, circle, square/rectangle, angle, fraction/percentage,
  equation, proof/theorem, statistics/probability, graph/diagram, mathematician, calculus/integral, prime
  number, average/mean, line, matrix
actions: add two numbers/compute the sum, multiply the numbers/compute the product, solve the equation/find
  x, count to ten, draw a circle, prove the theorem, calculate the average/work out the mean, divide by
  two/halve it
qualities: equal/the same, even, odd/uneven, infinite/endless, negative, positive, round/circular,
  mathematical
= Two plus two is four. = Adding two and two gives four.
= A triangle has three sides. = Three sides form a triangle.

# history and politics
things: history/the past, war/armed conflict, peace, king/monarch, queen, emperor/empire,
  revolution/uprising, soldier/army/troops, battle/fight, president/head of state,
  government/administration, parliament/congress/senate, election/vote, party/political party,
  minister/prime minister, democracy, treaty, law/legislation, ancient rome/roman empire, ancient
  egypt/pharaoh, middle ages/medieval times, pyramid, knight, politician, citizen/voter, slavery, mayor
actions: vote in the election/cast a vote, win the war, sign a peace treaty/make peace, rule the
  country/govern the nation, pass a law, overthrow the king/depose the king, elect a president/choose a
  president
qualities: political, historical/historic, royal, democratic, medieval, military, ancient
= The war ended in 1945. = In 1945 peace came after the war.
= The president gave a speech. = A speech was held by the head of state.
= Who won the election? = Which candidate got the most votes?

# law and crime
things: police/police officer/cop, thief/burglar/robber, crime/offence, prison/jail, judge, lawyer/attorney,
  court/trial, murder/killing, victim, witness, evidence, fine, rights/civil rights, detective/investigator,
  theft/robbery, fraud/scam, sentence/punishment, weapon/gun, suspect, handcuffs
actions: arrest the thief/catch the burglar, call the police, rob a bank/hold up a bank, steal a car, go to
  court/take legal action, commit a crime/break the law, solve the murder
qualities: guilty, innocent/not guilty, legal/lawful, illegal/unlawful/against the law, criminal, stolen
= The police caught the thief. = The robber was arrested by officers.
= He was sent to jail. = He went to prison. = A judge locked him up.

# safety and disasters
things: fire/blaze, firefighter/fireman, smoke, accident/crash/collision, explosion/blast, emergency,
  rescue, alarm/siren, danger/risk/hazard, helmet, safety rule/safety regulation, exit/emergency exit, first
  aid kit, fire extinguisher, leak, warning/alert, survivor
actions: put out the fire/extinguish the blaze, rescue the victims/save the victims, evacuate the
  building/leave the building, wear a helmet, report an accident/report a crash
qualities: safe/harmless, risky/hazardous, burning/on fire, destroyed/ruined, damaged
= The house is on fire. = There is a blaze in the building.
= Two cars crashed on the road. = There was a collision of two automobiles.

# environment and energy
things: environment/ecology, climate change/global warming, pollution/dirty air, recycling,
  waste/garbage/rubbish/trash, solar panel/solar power, wind turbine/wind power, coal, oil/petroleum,
  greenhouse gas/emissions, power plant/power station, rain forest, plastic bag, electric car, energy
  saving, sustainability, glacier/polar ice
actions: recycle plastic/reuse plastic, reduce emissions/cut emissions, save energy/use less energy, take
  out the trash/put out the rubbish, protect the environment/save nature, install solar panels
qualities: renewable/sustainable, polluted/contaminated, eco-friendly/green, wasteful
= The climate is getting warmer. = Global temperatures are rising.
= We must recycle more waste. = More rubbish ought to be recycled.

# language
things: language/tongue, word/term, sentence/phrase, grammar, english, french, german, spanish,
  chinese/mandarin, japanese, italian, russian, arabic, vocabulary, translation, accent/dialect, spelling,
  alphabet/letter, noun/verb/adjective, meaning/sense, interpreter/translator, conversation/talk/dialogue,
  question, answer/reply, joke, speech, synonym
actions: speak english/talk in english, translate the text, learn new words/build vocabulary, spell the
  word, ask a question/pose a question, answer the question/reply to the question, correct the grammar
qualities: bilingual, fluent, grammatical, spoken/oral, written/in writing
= Do you speak English? = Can you talk in English?
= What does this word mean? = What is the meaning of this term?

# games and hobbies
things: chess/board game, card game/poker, video game/computer game, puzzle/jigsaw, toy/doll, dice,
  player/gamer, hobby/pastime, console/game console, crossword, kite, lottery/gambling, stamp collection,
  magic trick, winner/champion, playground/swing, level, balloon
actions: play chess/have a game of chess, play cards, solve a puzzle/do a jigsaw, win the game/come out on
  top, collect stamps, roll the dice/throw the dice, fly a kite, take up a hobby/start a hobby
qualities: fun/amusing/entertaining, addictive, childish, tricky
= Checkmate ends a game of chess. = In chess the game is over at checkmate.
= Children love to play with toys. = Kids enjoy their dolls and toys.

# religion and philosophy
things: god/deity, church/cathedral, mosque, temple/shrine, prayer, bible/holy book, priest/monk,
  faith/belief, soul/spirit, heaven/paradise, hell, angel, devil/demon, philosophy/philosopher,
  ethics/morality, truth, freedom/liberty, death, meaning of life, myth/legend, ghost/phantom, buddhism,
  christianity, islam, wisdom, happiness
actions: pray to god/say a prayer, go to church/attend a service, believe in god/have faith,
  meditate/practice meditation, think about life/reflect on life
qualities: religious/devout, holy/sacred, spiritual, immortal/eternal, moral/ethical
= What is the meaning of life? = Why are we here? = What is the purpose of our existence?
= They pray in the church. = Prayers are said in the cathedral.

# tools and building
things: hammer, nail/screw, saw, drill, screwdriver, wood/timber, brick/concrete/cement, ladder,
  builder/construction worker, architect, glue/tape, bridge, crane, paint, workshop/tool shed, plumber/pipe,
  electrician/wiring, scissors, rope/string, bolt/nut, toolbox
actions: build a house/construct a house, drill a hole/make a hole, saw the wood/cut the wood, hammer a
  nail/drive in a nail, fix the pipe/repair the pipe, glue the pieces/stick the pieces together, climb the
  ladder
qualities: wooden/made of wood, metallic/made of metal, sharp, rusty, sturdy/solid/robust, blunt
= The builders are putting up a new house. = A new building is being constructed by workers.
= Use a hammer for the nail. = Nails are driven in with a hammer.
"""

PEOPLE = """I/me, you, he/him, she/her, we/us, they/them, my friend/my buddy, the teacher/the instructor,
the man/the guy, the woman/the lady, the children/the kids, my neighbour/my neighbor, my mother/my mum, my
father/my dad, the boss/the manager, Anna, Tom, Maria, Peter, Alice, Bob, Julia, David, Sarah, James,
somebody/someone, everybody/everyone, nobody/no one"""

SOMEONE = """man/guy/gentleman, woman/lady, boy/lad, girl, child/kid, person/human being, worker/employee,
friend/buddy, tourist/visitor, student/pupil, neighbour/neighbor, stranger, old man/elderly man"""

TIMES = """today/this day, yesterday/the day before today, tomorrow/the next day, now/right now/at the
moment, every morning/each morning, at night/in the evening, next week/in a week, last year/a year ago,
soon/shortly, always/all the time, never/at no time, often/frequently, sometimes/now and then, on monday, on
friday, on sunday, in summer, in winter, later/afterwards"""

ATTITUDES = """like/enjoy/am fond of, love/adore, hate/dislike/can't stand, need/require, want/would
like/wish for, have/own/possess, see/notice/spot, buy/purchase, sell, forget/don't remember, know/am
familiar with, lose/misplace, find/discover, fear/am afraid of"""

QUALITIES = """good/great/excellent/wonderful, bad/terrible/awful/horrible, big/large/huge,
small/little/tiny, old/ancient, new/modern/recent, strange/weird/odd, important/significant, useful/helpful,
useless/worthless, famous/well-known, cheap/inexpensive, expensive/costly, interesting/fascinating, ugly,
beautiful/pretty, heavy, light, broken/damaged, missing/lost/gone, rare/uncommon, common/ordinary, red,
blue, green, black, white, yellow, perfect/ideal, popular/well liked, real/genuine, cold, hot, different"""

DOINGS = """sits/sat/is sitting/rests/rested/is resting/lies, stands/stood/is standing, sleeps/slept/is
sleeping/naps/is asleep, walks/walked/is walking/strolls, runs/ran/is running/dashes, jumps/jumped/is
jumping/leaps, eats/ate/is eating/has a meal, waits/waited/is waiting, hides/hid/is hiding, falls/fell/is
falling/drops, plays/played/is playing, is/was/stays/remains, arrives/arrived/comes/came,
disappears/vanished/is gone, works/worked/is working, shouts/shouted/yells/is screaming"""

PLACINGS = """on/upon/on top of, under/below/beneath, near/beside/next to/close to, in/inside/within,
behind/at the back of, in front of/before, over/above, between/among, outside/out of, opposite/across
from"""

CAPITALS = """France:Paris, Germany:Berlin, Italy:Rome, Spain:Madrid, England:London, Japan:Tokyo,
China:Beijing, Russia:Moscow, Portugal:Lisbon, Greece:Athens, Austria:Vienna, Poland:Warsaw,
Sweden:Stockholm, Norway:Oslo, Denmark:Copenhagen, Finland:Helsinki, Ireland:Dublin, Belgium:Brussels,
Switzerland:Bern, Hungary:Budapest, Egypt:Cairo, Kenya:Nairobi, India:Delhi, Canada:Ottawa, Mexico:Mexico
City, Brazil:Brasilia, Argentina:Buenos Aires, Chile:Santiago, Peru:Lima, Cuba:Havana, Turkey:Ankara,
Iran:Tehran, Iraq:Baghdad, Thailand:Bangkok, Vietnam:Hanoi, Korea:Seoul, Australia:Canberra, Ukraine:Kyiv,
Nigeria:Abuja, Scotland:Edinburgh"""
