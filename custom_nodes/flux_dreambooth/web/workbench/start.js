// The form that starts a training: what, its name, how good; everything else is folded away.
import { h } from '../elements.js'
import { fetchRun } from '../server.js'
import { formatNumber, text } from '../texts.js'
import { createDatasetForm, resolutionFor } from './dataset_form.js'
import { button, field, folded, icon, refusal, statusLine } from './parts.js'
import { createPlan } from './plan.js'
import { QUALITIES, completed, ranked, readSettings, settingsOf, writeSettings } from './quality.js'
import { fetchJob, presetUrl, submitJob, uploadPreset, writePreset } from './requests.js'

const NEW = ' new' // no file has such a name
const SHOWN = ['max_train_epochs', 'max_train_steps', 'network_dim', 'learning_rate', 'save_every_n_epochs', 'sample_every_n_epochs', 'seed']

/** submitted(): called after each job of the form. Returns {element, show(facts), update(), fillWith(work), useConcept(name), useJob(job, settings), useRun(name), useCheckpoint(run, lora)}. */
export function createStart(submitted) {
  let presets = []
  let datasets = []
  let jobs = []
  let runs = []
  let busy = false
  let next = null // the control to go to once the form is filled
  let offered = '' // the name that a concept gave, as long as the user has not chosen another one
  const dataset = h('select', { class: 'fdb-dataset', onchange: draw })
  const newDataset = createDatasetForm()
  const name = h('input', { class: 'fdb-output-name', type: 'text', maxlength: 100, spellcheck: 'false', autocomplete: 'off', oninput: draw })
  const qualities = QUALITIES.map((quality) => h('input', { type: 'radio', name: 'fdb-quality', value: quality, checked: quality === 'good', onchange: draw }))
  const effect = h('div', { class: 'fdb-small fdb-effect' })
  const resume = h('select', { class: 'fdb-resume', onchange: chooseRun })
  const preset = h('select', { class: 'fdb-preset', onchange: draw })
  const own = SHOWN.map((setting) => h('input', { type: 'number', step: 'any', 'data-setting': setting, oninput: draw }))
  const others = h('textarea', { rows: 3, spellcheck: 'false', placeholder: 'lr_scheduler = "cosine"\nsave_state = true' })
  const share = h('a', { class: 'fdb-button', download: '' }, icon('pi-download'), text('bench.start.share'))
  const chooser = h('input', { type: 'file', hidden: true, accept: '.toml', onchange: takePreset })
  const presetName = h('input', { type: 'text', maxlength: 64, 'aria-label': text('bench.start.presetName'), placeholder: text('bench.start.presetName') })
  const status = statusLine()
  const refused = h('div', { role: 'alert' })
  const plan = createPlan(read)
  const start = button('pi-play', text('bench.start.start'), () => submit('train'), { class: 'fdb-button fdb-start' })
  const check = button('pi-list-check', text('bench.start.check'), () => submit('check'), { class: 'fdb-button fdb-check', title: text('bench.start.checkTip') })

  const controls = h('fieldset', { class: 'fdb-controls' },
    field(text('bench.start.images'), dataset), newDataset.element,
    field(text('bench.start.name'), name),
    h('fieldset', { class: 'fdb-quality' }, h('legend', { class: 'fdb-small' }, text('bench.start.quality')),
      QUALITIES.map((quality, index) => h('label', {}, qualities[index], text(`bench.quality.${quality}`)))),
    effect,
    field(text('bench.start.resume'), resume),
    folded(text('bench.start.more'), field(text('bench.start.preset'), preset),
      h('div', { class: 'fdb-fields' }, SHOWN.map((setting, index) => field(setting, own[index]))),
      field(text('bench.start.others'), others),
      h('div', { class: 'fdb-line' }, presetName, button('pi-save', text('bench.start.keep'), keep)),
      h('div', { class: 'fdb-actions' }, share, button('pi-upload', text('bench.start.take'), () => chooser.click()), chooser)),
    plan.element, h('div', { class: 'fdb-buttons' }, check, start), refused, status.element)
  const element = h('form', { class: 'fdb-form', onsubmit: (event) => event.preventDefault(), oninput: () => plan.changed(), onchange: () => plan.changed() }, controls)

  const chosenPreset = () => presets.find(({ file }) => file === preset.value)?.settings ?? {}
  const quality = () => QUALITIES[qualities.findIndex(({ checked }) => checked)]

  /** The job's preset, and the settings in addition to it. Throws an Error for a line that is no setting. */
  function settings() {
    const written = Object.fromEntries(own.filter(({ value }) => value !== '').map((input) => [input.dataset.setting, Number(input.value)]))
    const set = { ...settingsOf(quality(), chosenPreset()), ...written }
    if (written.network_dim) Object.assign(set, ranked(written.network_dim, chosenPreset()))
    try {
      Object.assign(set, readSettings(others.value))
    } catch (error) {
      throw new Error(text('bench.start.badLine', { line: error.message }))
    }
    if (resume.value) set.resume = `runs/${resume.value}`
    if (!written.max_train_steps || written.max_train_epochs) return { preset: preset.value || null, settings: set }
    return { preset: null, settings: without({ ...chosenPreset(), ...set }, ['max_train_epochs']) } // which would win over the steps
  }

  function draw() {
    newDataset.element.hidden = dataset.value !== NEW
    newDataset.suggestResolution(resolutionFor(chosenPreset(), datasets))
    const implied = { ...completed(chosenPreset()), ...settingsOf(quality(), chosenPreset()) }
    own.forEach((input) => { input.placeholder = implied[input.dataset.setting] ?? '–' })
    const written = (setting) => own.find((input) => input.dataset.setting === setting).value
    const value = (setting) => written(setting) || implied[setting]
    const length = written('max_train_steps') && !written('max_train_epochs') || !value('max_train_epochs') ? 'max_train_steps' : 'max_train_epochs'
    const facts = [length, 'network_dim', 'save_every_n_epochs'].filter(value)
    share.hidden = !preset.value
    if (preset.value) share.href = presetUrl(preset.value)
    plan.changed()
    effect.textContent = facts.map((setting) => text(`bench.effect.${setting}`, { n: formatNumber(Number(value(setting))) })).join(' · ')
  }

  /** The training as the server takes it, with its dataset file still to be written. Throws an Error with what is missing. */
  function read() {
    const output = name.value.trim() || null
    const images = dataset.value === NEW ? { new_dataset: newDataset.read() } : { dataset: dataset.value }
    return { output_name: output, ...images, ...settings() }
  }

  /** A run goes on under its own name, with the settings that its job had; whether it can is said at once. */
  async function chooseRun() {
    status.say()
    const run = resume.value
    name.disabled = Boolean(run)
    if (!run) return
    name.value = run
    const job = jobs.find((each) => each.kind === 'train' && each.run === run)
    const [{ checkpoints }, found] = await Promise.all([fetchRun(run), job && fetchJob(job.id)]).catch(() => [{ checkpoints: [] }])
    if (resume.value !== run) return
    if (found) fill(found.settings)
    const resumable = checkpoints.some(({ with_state: state }) => state)
    status.say(text(resumable ? 'bench.start.resumes' : 'bench.start.noState', { run }), resumable ? '' : 'problem')
  }

  async function submit(kind) {
    refused.replaceChildren()
    status.say()
    if (busy) return
    busy = true
    try {
      const output = name.value.trim()
      if (!output) throw new Error(text('bench.start.nameless'))
      if (!dataset.value) throw new Error(text('bench.dataset.choose'))
      const set = settings()
      const file = dataset.value === NEW ? await newDataset.write(output) : dataset.value
      const { job } = await submitJob({ kind, output_name: output, dataset: file, ...set })
      await submitted()
      dataset.value = file // also if it is new
      draw()
      status.say(text('bench.start.submitted', { job: job.id, file }), 'good')
    } catch (error) {
      refused.replaceChildren(refusal(error))
    } finally {
      busy = false
    }
  }

  async function keep() {
    refused.replaceChildren()
    try {
      const { preset: base, settings: set } = settings()
      const all = base ? { ...chosenPreset(), ...set } : set
      const { file } = await writePreset(presetName.value.trim(), without(all, ['output_name', 'dataset_config', 'resume']))
      await submitted()
      status.say(text('bench.start.kept', { file }), 'good')
    } catch (error) {
      refused.replaceChildren(refusal(error))
    }
  }

  /** A preset that somebody shared becomes one of ours, and is chosen. */
  async function takePreset() {
    const [file] = chooser.files
    chooser.value = '' // so that the same file can be chosen again
    refused.replaceChildren()
    try {
      const { file: kept } = await uploadPreset(file)
      await submitted()
      preset.value = kept
      draw()
      status.say(text('bench.start.kept', { file: kept }), 'good')
    } catch (error) {
      refused.replaceChildren(refusal(error))
    }
  }

  /** What there is to choose from; choices that are still there stay. */
  function show({ concepts, datasets: files, presets: found, usual, runs: every, jobs: all }) {
    presets = found
    datasets = files
    jobs = all
    runs = every
    const fits = files.filter(({ error }) => !error)
    options(dataset, [...fits.map(({ file, subsets }) => [file, `${file.replace('flux_data/', '')} – ${[...new Set(subsets.map(({ folder }) => folder))].join(', ')}`]), [NEW, text('bench.start.newDataset')]])
    options(preset, [...found.map(({ file, title }) => [file, title ? `${file.replace('flux_data/', '')} – ${title}` : file]), ['', text('bench.start.noPreset')]], usual ?? '')
    options(resume, [['', text('bench.start.fresh')], ...runs.filter(({ state }) => !['running', 'preparing', 'quiet'].includes(state)).map((run) => [run.name, run.name])])
    newDataset.show(concepts, files)
    draw()
  }

  /** While the form is being filled, nothing can be typed into it: the focus would be in a field that changes. */
  async function fillWith(work) {
    const focused = element.contains(document.activeElement) ? document.activeElement : null
    controls.disabled = true
    try {
      await work()
    } finally {
      controls.disabled = false
      if (next ?? focused) goTo(next ?? focused)
      next = null
    }
  }

  /** The control that the user has to look at next. */
  function goTo(control) {
    if (controls.disabled) next = control
    else control.focus()
    if (control === name) name.select()
  }

  /** A training of this concept is prepared. words: its trigger, if it is known. */
  function useConcept(concept, words) {
    dataset.value = NEW
    newDataset.choose(concept, words)
    if ([offered, ''].includes(name.value)) name.value = offered = concept
    draw()
  }

  /** Put a job's settings into the form. */
  function fill(given) {
    preset.value = ''
    if (given.dataset_config) dataset.value = given.dataset_config
    qualities.forEach((input) => { input.checked = input.value === 'best' })
    own.forEach((input) => { input.value = given[input.dataset.setting] ?? '' })
    others.value = writeSettings(without(given, [...SHOWN, 'output_name', 'dataset_config', 'resume']))
    draw()
  }

  /** A job of before, to be changed and submitted again under another name. */
  function useJob(job, given) {
    resume.value = ''
    name.disabled = false
    name.value = job.output_name
    fill(given)
    element.querySelector('.fdb-folded').open = true
    status.say(text('bench.start.again', { job: job.id }))
    goTo(name)
  }
  /** A run that has ended goes on from its latest state. */
  async function useRun(run) {
    resume.value = run
    await chooseRun()
    draw()
  }

  /** A new training begins with a checkpoint, with the settings of its run as far as they are known. */
  async function useCheckpoint(run, lora) {
    resume.value = ''
    name.disabled = false
    const job = jobs.find((each) => each.kind === 'train' && each.run === run)
    const found = job && await fetchJob(job.id).catch(() => null)
    const weights = { network_weights: `models/loras/${lora}` }
    if (found) fill({ ...found.settings, ...weights })
    else others.value = writeSettings({ ...weights, dim_from_weights: true }) // in addition to the preset that is chosen
    const taken = runs.map((each) => each.name)
    let number = 2
    while (taken.includes(`${run}-${number}`)) number++
    name.value = `${run}-${number}`
    element.querySelector('.fdb-folded').open = true
    draw()
    status.say(text('bench.start.begins', { lora, name: name.value }))
    goTo(name)
  }
  return { element, show, update: plan.update, fillWith, useConcept, useJob, useRun, useCheckpoint }
}

const without = (settings, names) => Object.fromEntries(Object.entries(settings).filter(([setting]) => !names.includes(setting)))

/** Fill a select, unless it shows the same already; the choice stays if it is still there, else it is `usual` or the first. */
function options(select, pairs, usual) {
  const now = JSON.stringify(pairs)
  if (select.dataset.options === now) return
  const first = select.dataset.options === undefined
  const wanted = first ? usual : select.value
  select.dataset.options = now
  select.replaceChildren(...pairs.map(([value, label]) => h('option', { value }, label)))
  if (pairs.some(([value]) => value === wanted)) select.value = wanted
}
