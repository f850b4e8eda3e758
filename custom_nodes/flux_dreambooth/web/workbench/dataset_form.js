// The part of the form that makes a dataset file of concepts: their trigger words, and how often each image is seen.
import { h } from '../elements.js'
import { formatNumber, text } from '../texts.js'
import { arrange, field } from './parts.js'
import { writeDataset } from './requests.js'

const COMPOSITES = 160 // as in the project's data.toml
const SMALLEST = 256 // side of a bucket in pixels, the trainer's own min_bucket_reso
const TAKEN = 409
const MOST_NAMES = 20 // that are tried
const USUAL_RESOLUTION = 1024
const MASKS = ['unused', 'ignore', 'preserve'] // what training does with them: nothing, or the mask_background of the dataset file

/** Returns {element, show(concepts, datasets), read(), write(name), choose(concept, words), suggestResolution(pixels)}. */
export function createDatasetForm() {
  const rows = new Map() // name -> {element, chosen, words, repeats, count, images, masks}
  const list = h('div', { class: 'fdb-choices' })
  const none = h('div', { class: 'fdb-small' }, text('bench.dataset.none'))
  const number = (value, min) => h('input', { type: 'number', min, max: 100000, step: 1, value })
  const resolution = number(USUAL_RESOLUTION, 64)
  const composites = number(0, 0)
  const preserved = number(0, 0)
  const buckets = h('input', { type: 'checkbox', checked: true })
  const masks = h('select', {}, MASKS.map((use) => h('option', { value: use }, text(`bench.dataset.masks.${use}`))))
  const maskChoice = field(text('bench.dataset.masks.label'), masks)
  let written = false // whether the user chose a number of composites
  let sized = false // the same of the resolution
  resolution.addEventListener('input', () => { sized = true })
  composites.addEventListener('input', () => { written = true })
  const element = h('div', { class: 'fdb-new-dataset' }, list,
    h('div', { class: 'fdb-fields' }, field(text('bench.dataset.resolution'), resolution),
      field(text('bench.dataset.composites'), composites), field(text('bench.dataset.preserved'), preserved)),
    h('label', { class: 'fdb-small' }, buckets, ` ${text('bench.dataset.buckets')}`), maskChoice,
    h('div', { class: 'fdb-small' }, text('bench.dataset.how')))

  const chosen = () => [...rows].filter(([, row]) => row.chosen.checked)

  const isMasked = ({ images, masks: n }) => images > 0 && n === images // a loss with masks needs one for every image

  function suggest() {
    const masked = chosen().filter(([, row]) => row.masks > 0).length
    if (!written) composites.value = masked > 1 ? COMPOSITES : 0
    maskChoice.hidden = !chosen().some(([, row]) => isMasked(row))
  }

  function add(name, words) {
    const row = {
      chosen: h('input', { type: 'checkbox', onchange: suggest }),
      words: h('input', { type: 'text', maxlength: 200, value: words, placeholder: text('bench.dataset.example'), 'aria-label': text('bench.dataset.words', { name }) }),
      repeats: h('input', { type: 'number', min: 1, max: 1000, value: 1, 'aria-label': text('bench.dataset.repeats', { name }), title: text('bench.dataset.repeats', { name }) }),
      count: h('span', { class: 'fdb-small' }),
      images: 0,
      masks: 0
    }
    row.words.addEventListener('input', () => { row.chosen.checked ||= row.words.value.trim() !== ''; suggest() })
    row.element = h('div', { class: 'fdb-choice' }, h('label', {}, row.chosen, h('span', { class: 'fdb-name' }, name), row.count),
      h('div', { class: 'fdb-line' }, row.words, row.repeats))
    rows.set(name, row)
  }

  /** What is there now; what the user has written stays. */
  function show(concepts, datasets) {
    const known = new Map(datasets.flatMap(({ subsets }) => subsets).map(({ folder, class_tokens: words }) => [folder, words ?? '']))
    for (const concept of concepts) {
      if (!rows.has(concept.name)) add(concept.name, known.get(concept.name) ?? '')
      const row = rows.get(concept.name)
      Object.assign(row, { images: concept.images, masks: concept.masks })
      row.count.textContent = text('bench.images.count', { n: formatNumber(concept.images) })
    }
    const names = concepts.map(({ name }) => name)
    for (const name of [...rows.keys()]) if (!names.includes(name)) rows.delete(name)
    suggest()
    arrange(list, names.length ? names.map((name) => rows.get(name).element) : [none])
  }

  /** The dataset as the server takes it, without a name. Throws an Error with what is missing. */
  function read() {
    const subsets = chosen().map(([folder, row]) => ({
      folder,
      class_tokens: row.words.value.trim(),
      num_repeats: Number(row.repeats.value) || 1,
      ...masks.value !== 'unused' && isMasked(row) && { masked_loss: true, mask_background: masks.value }
    }))
    if (!subsets.length) throw new Error(text('bench.dataset.choose'))
    const nameless = subsets.find((subset) => !subset.class_tokens)
    if (nameless) throw new Error(text('bench.dataset.wordless', { name: nameless.folder }))
    const general = { resolution: Number(resolution.value), batch_size: 1, enable_bucket: buckets.checked }
    if (buckets.checked && general.resolution < SMALLEST) general.min_bucket_reso = general.resolution
    return { subsets, general, compositions: Number(composites.value), preservation: Number(preserved.value) }
  }

  /** Write the file under this name, or one with a number. Returns its path; throws an Error with what is missing. */
  async function write(name) {
    const dataset = read()
    for (let count = 1; ; count++) {
      try {
        return (await writeDataset({ name: count === 1 ? name : `${name}-${count}`, ...dataset })).file
      } catch (error) {
        if (error.status !== TAKEN || count === MOST_NAMES) throw error
      }
    }
  }

  function suggestResolution(side) {
    if (!sized) resolution.value = side
  }

  /** Tick a concept. words: its trigger, unless the form has one already. */
  function choose(name, words = '') {
    const row = rows.get(name)
    if (!row) return
    row.words.value ||= words
    row.chosen.checked = true
    suggest()
    list.scrollTop += row.element.getBoundingClientRect().top - list.getBoundingClientRect().top // the list may be long
  }
  return { element, show, read, write, choose, suggestResolution }
}

/** The resolution of the dataset that a preset was made for. */
export function resolutionFor(preset, datasets) {
  return datasets.find(({ file }) => file === preset.dataset_config)?.resolution ?? USUAL_RESOLUTION
}
