// Text of a given form: regular expressions and JSON schemas as automata over bytes, and masks of tokens made of them.
import { Ajv2020 } from 'ajv/dist/2020.js'
import test from 'ava'
import fc from 'fast-check'
import { type GenerateOptions, HeddleError, loadModel, type Model } from '../lib/index.js'
import { Automaton, type State } from '../lib/tokenize/grammar/automaton.js'
import { Constraints, type TextForm } from '../lib/tokenize/grammar/constraints.js'
import { jsonSchemaGrammar } from '../lib/tokenize/grammar/json_schema.js'
import { regexExpression } from '../lib/tokenize/grammar/regex.js'
import { tinyModelFolder } from './tiny_model.js'

type Schema = { readonly [keyword: string]: unknown }

const ajv = new Ajv2020({ strict: false })
const utf8 = new TextEncoder()

/** Whether the automaton takes the text as a whole. */
function accepts(automaton: Automaton, text: string): boolean {
  let state: State | undefined = automaton.start
  for (const byte of utf8.encode(text)) state = state && automaton.step(state, byte)
  return state?.accepts ?? false
}

const ofRegex = (pattern: string): Automaton =>
  new Automaton({ root: regexExpression(pattern, { whole: true, place: 'test' }), rules: new Map() })

for (const [pattern, texts] of [
  ['abc', ['abc', 'ab', 'abcd', '']],
  ['a*b+c?', ['b', 'aabbc', 'ac', 'aab', 'aabcc']],
  ['(?:ab|c){2,3}', ['abc', 'abab', 'c', 'cccc', 'ccab']],
  ['[a-c\\d_-]+', ['a1_-', 'd', 'c9', '']],
  ['[^x-z]', ['a', 'x', 'é', '漢', '🙂', 'ab']],
  ['.\\.\\s\\S', ['a. b', 'ab b', 'é.\tx', 'a.  ']],
  ['[à-ÿ]{2}', ['éè', 'e', 'ÿà', 'éx']],
  ['(a|b)*?c|', ['', 'abac', 'ab', 'c']],
  ['(a*)*', ['', 'aaa', 'b']],
  ['\\u0041\\x42', ['AB', 'ab']],
  ['[🙂-🙃漢]', ['🙂', '🙃', '漢', '🙄', '字']],
] as const)
  test(`the pattern ${pattern} allows what it matches, and nothing else`, (t) => {
    const automaton = ofRegex(pattern)
    const expected = new RegExp(`^(?:${pattern})$`, 'u')
    for (const text of texts) t.is(accepts(automaton, text), expected.test(text), text)
  })

for (const pattern of ['(?=a)', '\\1', 'a{3,2}', '[b-a]', '(a', 'a)', '*', '\\b', 'a{20000}'])
  test(`the pattern ${pattern} is refused`, (t) => {
    t.throws(() => ofRegex(pattern), { instanceOf: HeddleError, code: 'ERR_HEDDLE_ARGUMENT' })
  })

test('integers and numbers within bounds, all of them', (t) => {
  for (const [minimum, maximum] of [
    [0, 7],
    [8, 123],
    [-105, 99],
    [-20, -3],
    [5, 5],
  ] as const) {
    const schema = { type: 'integer', minimum, maximum }
    const automaton = new Automaton(jsonSchemaGrammar(schema))
    for (let value = -150; value <= 150; value += 1)
      t.is(accepts(automaton, `${value}`), value >= minimum && value <= maximum, `${value} in ${minimum}..${maximum}`)
  }
  const numbers = new Automaton(jsonSchemaGrammar({ type: 'number', minimum: -1, maximum: 12 }))
  for (const text of ['-1', '-0.5', '0', '11.99', '12']) t.true(accepts(numbers, text), text)
  for (const text of ['-1.5', '12.1', '13', '-2']) t.false(accepts(numbers, text), text)
})

for (const [name, schema, valid, invalid] of [
  [
    'objects',
    { type: 'object', properties: { a: { type: 'integer' }, b: { type: 'boolean' } }, required: ['b'] },
    ['{"a":1,"b":true}', '{"b": false}', '{"a": 12, "b": true}'],
    ['{}', '{"a":1}', '{"b":1}', '{"b":true,"a":1}', '{"a":1,}', '{"b":true'],
  ],
  [
    'arrays',
    { type: 'array', items: { type: 'null' }, minItems: 1, maxItems: 2 },
    ['[null]', '[null, null]'],
    ['[]', '[null,null,null]', '[null,]'],
  ],
  [
    'strings',
    { type: 'string', minLength: 1, maxLength: 3 },
    ['"a"', '"\\n🙂é"', '"\\u00e9"'],
    ['""', '"abcd"', '"a', '"\n"', '"\\ud800"'],
  ],
  ['patterns', { type: 'string', pattern: '^[a-z"]+\\d$' }, ['"ab1"', '"\\"1"'], ['"ab"', '""1"', '"1"']],
  ['parts of strings', { type: 'string', pattern: 'b' }, ['"abc"', '"b"'], ['"ac"']],
  ['enumerations', { enum: ['x y', 1, null, { k: [1] }] }, ['"x y"', '1', 'null', '{"k":[1]}'], ['"x"', '2']],
  ['several types', { type: ['string', 'null'] }, ['null', '""'], ['1']],
  ['alternatives', { anyOf: [{ const: 'a' }, { type: 'array', items: { const: 2 } }] }, ['"a"', '[2,2]', '[]'], ['2']],
  [
    'references to themselves',
    {
      $ref: '#/$defs/n',
      $defs: { n: { type: 'object', properties: { n: { $ref: '#/$defs/n' } }, additionalProperties: false } },
    },
    ['{}', '{"n":{"n":{}}}'],
    ['{"n":1}', '{"n":{}'],
  ],
  ['anything', {}, ['[1, {"a": [true, -1.5e3]}]', '"x"'], ['[1 ,2]', '01', 'nul']],
  ['maps', { type: 'object', additionalProperties: { type: 'integer' } }, ['{}', '{"a":1,"b":2}'], ['{"a":"b"}']],
] as const)
  test(`${name}: the schema's texts, and no others`, (t) => {
    const automaton = new Automaton(jsonSchemaGrammar(schema as Schema))
    for (const text of valid) {
      t.true(accepts(automaton, text), text)
      t.true(ajv.validate(schema, JSON.parse(text)), text)
    }
    for (const text of invalid) t.false(accepts(automaton, text), text)
  })

for (const [schema, message] of [
  [{ type: 'string', format: 'email' }, /"format"/],
  [{ type: 'object', properties: { a: { allOf: [] } } }, /#\/properties\/a.*"allOf"/],
  [{ $ref: 'other.json' }, /\$ref/],
  [{ $ref: '#/$defs/missing' }, /missing/],
  [{ type: 'text' }, /#\/type/],
] as const)
  test(`the schema ${JSON.stringify(schema)} is refused with its place`, (t) => {
    t.throws(() => jsonSchemaGrammar(schema as Schema), { code: 'ERR_HEDDLE_ARGUMENT', message })
  })

/** Every byte as a token, a few longer ones, and an end token. */
const tokens: (Uint8Array | undefined)[] = [
  ...Array.from({ length: 256 }, (_, byte) => Uint8Array.of(byte)),
  ...['{"', '":', '": ', '", "', 'true', '[]', '}}', 'null', '\\u00', ' the', '🙂', '123'].map((text) =>
    utf8.encode(text),
  ),
  undefined,
]
const end = tokens.length - 1

/** A text whose tokens are picked among the allowed ones, as a model without any sense would. */
function randomText(form: TextForm, maxTokens: number, pick: () => number): string {
  const constraints = new Constraints(tokens, [end])
  const id = constraints.open({ form, maxTokens, vocabularySize: tokens.length })
  const bytes: number[] = []
  for (let count = 0; count < maxTokens; count += 1) {
    const mask = constraints.mask(id, maxTokens - count)
    const allowed = tokens.map((_, token) => token).filter((token) => (mask[token >> 5]! >> (token & 31)) & 1)
    const token = allowed[Math.floor(pick() * allowed.length)]!
    if (token === end) break
    bytes.push(...tokens[token]!)
    if (constraints.advance(id, token)) break
  }
  return new TextDecoder('utf-8', { fatal: true }).decode(Uint8Array.from(bytes))
}

const key = fc.constantFrom('a', 'b "quoted"', 'ü', 'long name')
const leaf: fc.Arbitrary<Schema> = fc.oneof(
  fc.constant({ type: 'boolean' }),
  fc.constant({ type: 'null' }),
  fc.constant({ type: 'number' }),
  fc
    .tuple(fc.integer({ min: -50, max: 50 }), fc.nat(200))
    .map(([low, more]) => ({ type: 'integer', minimum: low, maximum: low + more })),
  fc
    .tuple(fc.nat(2), fc.nat(3))
    .map(([least, more]) => ({ type: 'string', minLength: least, maxLength: least + more })),
  fc.constantFrom('^[a-f]{2}$', '\\d', '^("|\\\\)+$').map((pattern) => ({ type: 'string', pattern })),
  fc.array(fc.jsonValue({ maxDepth: 1 }), { minLength: 1, maxLength: 3 }).map((values) => ({ enum: values })),
  fc.constant({ type: ['string', 'integer'] }),
)
const { schema: anySchema } = fc.letrec<{ schema: Schema }>((tie) => ({
  schema: fc.oneof(
    { maxDepth: 3, withCrossShrink: true },
    leaf,
    fc
      .tuple(fc.dictionary(key, tie('schema'), { maxKeys: 3 }), fc.subarray(['a', 'ü']))
      .map(([properties, required]) => ({ type: 'object', properties, required })),
    fc
      .tuple(tie('schema'), fc.nat(2), fc.nat(2))
      .map(([items, minItems, more]) => ({ type: 'array', items, minItems, maxItems: minItems + more })),
    fc.array(tie('schema'), { minLength: 1, maxLength: 3 }).map((anyOf) => ({ anyOf })),
  ),
}))

test('random schemas: whatever tokens are picked, the text ends within its budget, parses and is valid', (t) => {
  fc.assert(
    fc.property(
      anySchema,
      fc.infiniteStream(fc.double({ min: 0, max: 1, maxExcluded: true, noNaN: true })),
      fc.nat(40),
      (schema, picks, spare) => {
        const { leastBytes } = new Automaton(jsonSchemaGrammar(schema)).start
        const text = randomText({ type: 'json_schema', schema }, leastBytes + spare, () => picks.next().value!)
        t.true(ajv.validate(schema, JSON.parse(text)), `${JSON.stringify(schema)}: ${text}`)
      },
    ),
    { numRuns: 150, seed: 5 },
  )
})

test('any JSON object, and text of a pattern, from random tokens', (t) => {
  let state = 1
  const pick = (): number => {
    state = (Math.imul(state, 1664525) + 1013904223) >>> 0
    return state / 2 ** 32
  }
  for (let round = 0; round < 30; round += 1) {
    t.is(typeof JSON.parse(randomText({ type: 'json_object' }, 2 + round, pick)), 'object')
    t.regex(
      randomText({ type: 'regex', pattern: '[A-Z]{2,}-\\d+(,[A-Z]{2,}-\\d+)*' }, 4 + round, pick),
      /^[A-Z]{2,}-\d+/,
    )
  }
})

test('more tokens than maxTokens, or a schema that nothing satisfies, are refused before anything is made', (t) => {
  const constraints = new Constraints(tokens, [end])
  const open = (schema: unknown, maxTokens: number) => () =>
    constraints.open({
      form: { type: 'json_schema', schema: schema as Schema },
      maxTokens,
      vocabularySize: tokens.length,
    })
  t.throws(open({ const: 'twelve bytes' }, 13), { code: 'ERR_HEDDLE_ARGUMENT', message: /at least 14/ })
  t.notThrows(open({ const: 'twelve bytes' }, 14))
  t.throws(open({ $ref: '#' }, 100), { message: /finite/ })
  t.throws(open({ type: 'array', minItems: 3, maxItems: 2 }, 100), { message: /finite/ })
})

const personSchema = {
  type: 'object',
  properties: {
    name: { type: 'string', maxLength: 12 },
    age: { type: 'integer', minimum: 0, maximum: 120 },
    tags: { type: 'array', items: { enum: ['new', 'old'] }, maxItems: 3 },
  },
  required: ['name', 'age'],
}

async function textOf(model: Model, options: GenerateOptions): Promise<string> {
  let text = ''
  for await (const piece of model.generate('Describe a person.', options)) text += piece
  return text
}

test('a model of random weights writes valid JSON at any temperature, in any budget', async (t) => {
  const model = await loadModel(await tinyModelFolder())
  const responseFormat = { type: 'json_schema', schema: personSchema } as const
  for (const [seed, maxTokens] of [25, 40, 80, 150].entries()) {
    const text = await textOf(model, { responseFormat, temperature: seed / 2, seed, maxTokens })
    t.true(ajv.validate(personSchema, JSON.parse(text)), text)
  }
  const batch = await model.generateBatch(['One', 'Another prompt'], { responseFormat, maxTokens: 60, temperature: 1 })
  for (const { text, finishReason } of batch) {
    t.true(ajv.validate(personSchema, JSON.parse(text)), text)
    t.is(finishReason, 'stop')
  }
  await t.throwsAsync(textOf(model, { responseFormat, maxTokens: 5 }), { code: 'ERR_HEDDLE_ARGUMENT' })
  await model.dispose()
})
