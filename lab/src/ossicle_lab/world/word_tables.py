"""List the words of the lab's world in English, German and Spanish, as tables that are easy to check by eye.

`word/synonym` gives an English word and its paraphrase, which have the same translation. Several pairs of words differ
in spelling only (flower/flour, sun/son, knight/night, red/read, plane/plain, deer/dear, pail/pale, week/weak, aunt/ant,
maid/made): they sound the same, and the context has to decide.
"""

# Kinds: t thing, a animal, f food, x text, v view. An upper-case letter marks nouns that only take "the" (the sun).
NOUNS = """
car | auto n | coche m | t
bike/bicycle | fahrrad n | bicicleta f | t
ring | ring m | anillo m | t
key | schlüssel m | llave f | t
clock | uhr f | reloj m | t
lamp | lampe f | lámpara f | t
chair | stuhl m | silla f | t
table | tisch m | mesa f | t
cup/mug | tasse f | taza f | t
knife | messer n | cuchillo m | t
hat | hut m | sombrero m | t
coat | mantel m | abrigo m | t
shirt | hemd n | camisa f | t
bag | tasche f | bolsa f | t
box | kiste f | caja f | t
ball | ball m | pelota f | t
gift/present | geschenk n | regalo m | t
stone/rock | stein m | piedra f | t
mirror | spiegel m | espejo m | t
bottle | flasche f | botella f | t
plate | teller m | plato m | t
guitar | gitarre f | guitarra f | t
umbrella | regenschirm m | paraguas m | t
flower | blume f | flor f | t
pail | eimer m | cubo m | t
sail | segel n | vela f | t
board | brett n | tabla f | t
plane | flugzeug n | avión m | t
boat | boot n | barco m | t
phone | telefon n | teléfono m | t
basket | korb m | cesta f | t
sword | schwert n | espada f | t
crown | krone f | corona f | t
blanket | decke f | manta f | t
camera | kamera f | cámara f | t
dog | hund m | perro m | a
cat | katze f | gato m | a
horse | pferd n | caballo m | a
bear | bär m bären | oso m | a
deer | reh n | ciervo m | a
hare | hase m hasen | liebre f | a
ant | ameise f | hormiga f | a
whale | wal m | ballena f | a
bird | vogel m | pájaro m | a
cow | kuh f | vaca f | a
duck | ente f | pato m | a
mouse | maus f | ratón m | a
herd | herde f | rebaño m | a
sheep | schaf n | oveja f | a
apple | apfel m | manzana f | f
pear | birne f | pera f | f
cake | kuchen m | pastel m | f
soup | suppe f | sopa f | f
cheese | käse m | queso m | f
egg | ei n | huevo m | f
lemon | zitrone f | limón m | f
bread | brot n | pan m | F
flour | mehl n | harina f | F
tea | tee m | té m | F
meat | fleisch n | carne f | F
rice | reis m | arroz m | F
book | buch n | libro m | x
letter | brief m | carta f | x
newspaper | zeitung f | periódico m | x
tale | märchen n | cuento m | x
map | karte f | mapa m | x
poem | gedicht n | poema m | x
mail | post f | correo m | X
sun | sonne f | sol m | V
moon | mond m | luna f | V
house | haus n | casa f | v
rainbow | regenbogen m | arcoíris m | v
mountain | berg m | montaña f | v
statue | statue f | estatua f | v
photo/picture | foto n | foto f | v
"""

PEOPLE = """
doctor/physician | arzt m | médico m | p
teacher | lehrer m | profesor m | p
girl | mädchen n | niña f | p
boy/lad | junge m jungen | niño m | p
woman | frau f | mujer f | p
man | mann m | hombre m | p
farmer | bauer m bauern | granjero m | p
knight | ritter m | caballero m | p
nurse | krankenschwester f | enfermera f | p
son | sohn m | hijo m | p
aunt | tante f | tía f | p
uncle | onkel m | tío m | p
king | könig m | rey m | p
queen | königin f | reina f | p
baker | bäcker m | panadero m | p
neighbor | nachbar m nachbarn | vecino m | p
maid | magd f | criada f | p
prince | prinz m prinzen | príncipe m | p
pilot | pilot m piloten | piloto m | p
grandmother | großmutter f | abuela f | p
sister | schwester f | hermana f | p
guest | gast m | invitado m | p
"""

NAMES = "anna tom maria peter lisa david sara paul emma max nina leo clara felix julia oscar"

THING_ADJECTIVES = """
red | rot | rojo
blue | blau | azul
green | grün | verde
white | weiß | blanco
black | schwarz | negro
yellow | gelb | amarillo
brown | braun | marrón
old | alt | viejo
new | neu | nuevo
big/large | groß | grande
small/little | klein | pequeño
heavy | schwer | pesado
cheap | billig | barato
expensive | teur | caro
clean | sauber | limpio
dirty | schmutzig | sucio
beautiful/pretty | schön | bonito
strange/odd | seltsam | extraño
pale | blass | pálido
plain | schlicht | sencillo
dear | lieb | querido
warm | warm | caliente
cold | kalt | frío
wet | nass | mojado
"""

PERSON_ADJECTIVES = """
old | alt | viejo
young | jung | joven
small/little | klein | pequeño
strange/odd | seltsam | extraño
pale | blass | pálido
weak | schwach | débil
dear | lieb | querido
tired | müd | cansado
happy | glücklich | feliz
sad | traurig | triste
rich | reich | rico
poor | arm | pobre
smart/clever | klug | listo
famous | berühmt | famoso
"""

# past present base[/synonym forms] | participle present | preterite present | object kinds, + for a recipient
VERBS = """
saw sees see | gesehen sieht | vio ve | tafxvp
found finds find/discovered discovers discover | gefunden findet | encontró encuentra | tafx
bought buys buy/purchased purchases purchase | gekauft kauft | compró compra | tafx
sold sells sell | verkauft verkauft | vendió vende | tafx+
lost loses lose | verloren verliert | perdió pierde | tax
took takes take | genommen nimmt | tomó toma | tfx
brought brings bring | gebracht bringt | trajo trae | tafx+
carried carries carry | getragen trägt | llevó lleva | tafx
painted paints paint | gemalt malt | pintó pinta | tavp
drew draws draw | gezeichnet zeichnet | dibujó dibuja | tavp
cleaned cleans clean | geputzt putzt | limpió limpia | t
washed washes wash | gewaschen wäscht | lavó lava | ta
hid hides hide | versteckt versteckt | escondió esconde | tafx
forgot forgets forget | vergessen vergisst | olvidó olvida | tfx
stole steals steal | gestohlen stiehlt | robó roba | tafx
kept keeps keep | behalten behält | guardó guarda | tafx
broke breaks break | zerbrochen zerbricht | rompió rompe | t
fixed fixes fix/repaired repairs repair | repariert repariert | reparó repara | t
showed shows show | gezeigt zeigt | mostró muestra | tafxv+
gave gives give | gegeben gibt | dio da | tafx+
sent sends send | geschickt schickt | envió envía | tfx+
lent lends lend | geliehen leiht | prestó presta | tx+
read reads read | gelesen liest | leyó lee | x
wrote writes write | geschrieben schreibt | escribió escribe | x
ate eats eat | gegessen isst | comió come | f
cooked cooks cook | gekocht kocht | cocinó cocina | f
made makes make | gemacht macht | hizo hace | tf
won wins win | gewonnen gewinnt | ganó gana | ta
threw throws throw | geworfen wirft | lanzó lanza | tf
heard hears hear | gehört hört | oyó oye | ap
loved loves love | geliebt liebt | amó ama | afp
needed needs need | gebraucht braucht | necesitó necesita | tfx
caught catches catch | gefangen fängt | atrapó atrapa | a
fed feeds feed | gefüttert füttert | alimentó alimenta | a
tasted tastes taste | probiert probiert | probó prueba | f
burned burns burn | verbrannt verbrennt | quemó quema | tx
touched touches touch | berührt berührt | tocó toca | ta
filmed films film | gefilmt filmt | filmó filma | avp
watched watches watch/observed observes observe | beobachtet beobachtet | observó observa | avp
visited visits visit | besucht besucht | visitó visita | p
called calls call | gerufen ruft | llamó llama | p
greeted greets greet | gegrüßt grüßt | saludó saluda | p
hugged hugs hug | umarmt umarmt | abrazó abraza | ap
packed packs pack | gepackt packt | empacó empaca | tx
"""

PLACES = """
park | park m | parque m | in | im
garden | garten m | jardín m | in | im
station | bahnhof m | estación f | at | am
kitchen | küche f | cocina f | in | in der
forest/woods | wald m | bosque m | in | im
beach | strand m | playa f | on | am
market | markt m | mercado m | at | auf dem
school | schule f | escuela f | in | in der
library | bibliothek f | biblioteca f | in | in der
church | kirche f | iglesia f | in | in der
lake | see m | lago m | at | am
hotel | hotel n | hotel m | in | im
hospital | krankenhaus n | hospital m | in | im
village | dorf n | pueblo m | in | im
street | straße f | calle f | on | auf der
shop/store | laden m | tienda f | in | im
sea | meer n | mar m | at | am
cellar | keller m | sótano m | in | im
bridge | brücke f | puente m | on | auf der
castle | schloss n | castillo m | in | im
tower | turm m | torre f | in | im
river | fluss m | río m | at | am
airport | flughafen m | aeropuerto m | at | am
museum | museum n | museo m | in | im
"""

TIMES = """
yesterday | gestern | ayer | past
last week | letzte woche | la semana pasada | past
last year | letztes jahr | el año pasado | past
last month | letzten monat | el mes pasado | past
today | heute | hoy
on monday | am montag | el lunes
on tuesday | am dienstag | el martes
on wednesday | am mittwoch | el miércoles
on thursday | am donnerstag | el jueves
on friday | am freitag | el viernes
on saturday | am samstag | el sábado
on sunday | am sonntag | el domingo
in the morning | am morgen | por la mañana
in the afternoon | am nachmittag | por la tarde
at night | in der nacht | por la noche
at noon | am mittag | al mediodía
at midnight | um mitternacht | a medianoche
in summer | im sommer | en verano
in winter | im winter | en invierno
in spring | im frühling | en primavera
in june | im juni | en junio
before breakfast | vor dem frühstück | antes del desayuno
after lunch | nach dem mittagessen | después del almuerzo
before dinner | vor dem abendessen | antes de la cena
"""
