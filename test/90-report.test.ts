// The HTML report of a training run.
import test from 'ava'
import { renderReport, type TrainingReport } from '../lib/train/report.js'

const report: TrainingReport = {
  model: { name: 'models/tiny', architecture: 'LlamaForCausalLM', parameters: 3_000_000 },
  data: { file: 'support.jsonl', examples: 400, heldOut: 40 },
  adapter: { name: 'LoRA', trainedParameters: 60_000, folder: 'out/adapter' },
  config: { r: 16, target_modules: ['q_proj', 'v_proj'] },
  steps: Array.from({ length: 20 }, (_, index) => ({ index: index + 1, loss: 3 - index / 20, learningRate: 1e-3 })),
  evaluations: [
    { step: 0, loss: 3.25 },
    { step: 20, loss: 2.5 },
  ],
  samples: [{ prompt: 'How do I log in?', before: 'the sea', after: 'Press “Log in”.' }],
  tokensPerSecond: 5000,
  peakMemoryBytes: 300 * 2 ** 20,
  seconds: 75,
}

test('shows the run in numbers', (t) => {
  const html = renderReport(report)
  for (const text of [
    '3.250',
    '2.500',
    '−23.1 %',
    '25.8',
    '12.2',
    '2.00 % of 3M',
    '5,000 tok/s',
    '300 MiB',
    '1 min 15 s',
  ])
    t.true(html.includes(text), text)
})

test('shows model, data, configuration and the samples of before and after', (t) => {
  const html = renderReport(report)
  for (const text of [
    'models/tiny',
    'support.jsonl',
    'q_proj, v_proj',
    'How do I log in?',
    'the sea',
    'Press “Log in”.',
  ])
    t.true(html.includes(text), text)
})

test('loads nothing: no address, script or image in it', (t) => {
  t.notRegex(renderReport(report), /https?:|<script|<link|<img|url\(|@import/)
})

test('text of the user is never markup', (t) => {
  const hostile = '<script>alert("x")</script>'
  const html = renderReport({
    ...report,
    model: { ...report.model, name: hostile },
    data: { ...report.data, file: hostile },
    config: { [hostile]: hostile },
    samples: [{ prompt: hostile, before: hostile, after: hostile }],
  })
  t.false(html.includes('<script'))
})

test('pictures have a title and a description for screen readers', (t) => {
  const html = renderReport(report)
  const pictures = html.match(/<svg [^>]*role="img" aria-labelledby="(\w+)-title \1-description">/g) ?? []
  t.is(pictures.length, 2)
  t.true(html.includes('held-out loss from 3.250 to 2.500'))
})

test('a run without steps or evaluations still has a report', (t) => {
  const html = renderReport({ ...report, steps: [], evaluations: [], samples: [] })
  t.false(html.includes('<svg'))
  t.notRegex(html, /undefined|NaN/)
})

test('a diverged loss leaves a gap and no broken path', (t) => {
  const steps = report.steps.map((step) => (step.index > 10 ? { ...step, loss: Number.NaN } : step))
  const paths = renderReport({ ...report, steps }).match(/ d="[^"]*"/g) ?? []
  t.true(paths.length > 0)
  t.false(paths.some((path) => path.includes('NaN')))
})

test('a long run is thinned to a small file', (t) => {
  const steps = Array.from({ length: 50_000 }, (_, index) => ({ index: index + 1, loss: 2, learningRate: 1e-3 }))
  t.true(renderReport({ ...report, steps }).length < 64 * 1024)
})

test('what steps know besides gets a picture: gradient norm, speed, memory', (t) => {
  const steps = report.steps.map((step) => ({
    ...step,
    gradientNorm: 1 / step.index,
    tokensPerSecond: 5000,
    residentBytes: 200 * 2 ** 20,
  }))
  const html = renderReport({ ...report, steps })
  t.is((html.match(/<svg /g) ?? []).length, 5)
  for (const text of ['Gradient norm, before clipping', 'Tokens per second', 'Resident memory: at most 200 MiB'])
    t.true(html.includes(text), text)
})

test('a classification shows its metrics and its confusion matrix; texts written on the way are shown, escaped', (t) => {
  const html = renderReport({
    ...report,
    evaluations: [{ step: 20, loss: 0.5, metrics: { accuracy: 0.9814 } }],
    confusion: {
      labels: ['ham', '<spam>'],
      counts: [
        [377, 3],
        [8, 204],
      ],
    },
    written: [{ step: 10, samples: [{ prompt: 'Once', text: 'upon <b>' }] }],
  })
  for (const text of [
    '0.9814',
    '<strong>377</strong>',
    '<td>8</td>',
    '&#60;spam&#62;',
    'After step 10',
    'upon &#60;b&#62;',
  ])
    t.true(html.includes(text), text)
  t.false(html.includes('Perplexity'))
})
