// One concept: its images with their captions, and what can be done with all of them.
import { h } from '../elements.js'
import { formatNumber, message, text } from '../texts.js'
import { createImage } from './caption.js'
import { createLiveCheck } from './live_check.js'
import { arrange, button, field, folded, inOrder, problemList, statusLine, troublePlace } from './parts.js'
import { fetchConcept, fetchDatasets, fetchJob, fetchJobs, replaceInCaptions, submitJob, undoCaptions } from './requests.js'
import { sheetPictures } from './sheets.js'
import { takeDrops, upload } from './uploads.js'

const LOOK = 5000 // milliseconds between two looks at the folder

/** actions: back(), train(concept, words). Returns {element, update(now), addFiles(found), save()}. */
export function createConcept(name, limits, actions) {
  const rows = new Map() // file -> of createImage
  const list = h('ul', { class: 'fdb-images' })
  const none = h('div', { class: 'fdb-small' }, text('bench.images.drop'))
  const status = statusLine()
  const trouble = troublePlace()
  const problems = h('div')
  const leftOut = h('div', { class: 'fdb-small' })
  const sheets = h('div', { class: 'fdb-sheets' })
  const chooser = h('input', { type: 'file', multiple: true, hidden: true, accept: 'image/*,.txt,.caption', onchange: chosen })
  const undo = button('pi-undo', text('bench.images.undo'), takeBack, { class: 'fdb-button fdb-undo', disabled: true })
  const words = h('input', { class: 'fdb-words', type: 'text', maxlength: 200, placeholder: text('bench.dataset.example'), onchange: lookLive, disabled: true })
  const live = createLiveCheck(name, () => { if (seen) show(seen, seenAt) })
  const masks = h('input', { type: 'checkbox', onchange: () => show(seen, seenAt) })
  const maskChoice = h('label', { class: 'fdb-small', hidden: true }, masks, ` ${text('bench.images.masks')}`)
  const element = h('div', { class: 'fdb-concept' },
    h('div', { class: 'fdb-line fdb-top' }, button('pi-arrow-left', text('bench.images.back'), actions.back, { small: true, class: 'fdb-icon fdb-shown fdb-back' }),
      h('strong', { class: 'fdb-name' }, name)),
    h('div', { class: 'fdb-actions' }, button('pi-upload', text('bench.images.add'), () => chooser.click(), { class: 'fdb-button fdb-add' }), chooser,
      undo, button('pi-play', text('bench.images.train'), () => actions.train(name, words.value.trim()))),
    status.element, trouble.element, problems, leftOut,
    field(text('bench.images.words'), words), live.element,
    replaceForm(), modelForm(), sheets, maskChoice, none, list)
  const order = inOrder()
  let seen = null
  let seenAt = 0
  let checked = { job: null, images: new Map() } // the newest check, by the images' paths
  let looked = 0
  takeDrops(element, addFiles)

  async function update(now = false) {
    if (!now && Date.now() - looked < LOOK) return
    looked = Date.now()
    const [mine, asked] = [order.asks(), performance.now()]
    try {
      const [found] = await Promise.all([fetchConcept(name), look().catch(() => {})])
      if (!order.isNewest(mine)) return
      show(found, asked)
      trouble.show()
      if (words.disabled) await lookUpWords().finally(() => { words.disabled = false })
      lookLive()
    } catch (error) {
      trouble.show(error)
    }
  }

  /** The trigger that a dataset file gives this concept. */
  async function lookUpWords() {
    const { datasets } = await fetchDatasets()
    const subset = datasets.flatMap(({ subsets }) => subsets).find(({ folder, class_tokens: trigger }) => folder === name && trigger)
    words.value = subset?.class_tokens ?? ''
  }

  function lookLive() {
    if (seen?.images.length) live.look(words.value.trim(), seen.images.every(({ mask }) => mask))
  }

  /** What the newest check has found about the images. */
  async function look() {
    const { jobs } = await fetchJobs()
    const job = jobs.filter(({ kind, state }) => kind === 'check' && state === 'finished').sort((a, b) => b.ended - a.ended)[0]
    if (!job || `${job.id} ${job.ended}` === checked.job) return
    const { result, sheets: made } = await fetchJob(job.id)
    checked = { job: `${job.id} ${job.ended}`, images: new Map((result?.images ?? []).map((image) => [image.path.split(/[\\/]/).slice(-2).join('/'), image])) }
    const isOurs = [...checked.images.keys()].some((path) => path.startsWith(`${name}/`))
    sheets.replaceChildren(...[isOurs && sheetPictures(job.output_name, made)].filter(Boolean))
  }

  /** A check counts as long as the image has the size that it saw. */
  function training({ file, width, height }) {
    const found = checked.images.get(`${name}/${file}`)
    return found && found.width === width && found.height === height ? found : null
  }

  function show(found, asked) {
    [seen, seenAt] = [found, asked]
    undo.disabled = !found.can_undo
    none.hidden = found.images.length > 0
    maskChoice.hidden = !found.images.some(({ mask }) => mask)
    leftOut.textContent = found.left_out.length ? text('bench.images.leftOut', { files: found.left_out.map((each) => `${each.name} (${message(each.why)})`).join(', ') }) : ''
    for (const image of found.images) {
      if (!rows.has(image.file)) rows.set(image.file, createImage(name, image.file, limits, (canUndo) => { undo.disabled = !canUndo }))
      rows.get(image.file).update(image, masks.checked, training(image), live.messagesOf(image.file) ?? training(image)?.messages ?? [], asked)
    }
    const files = found.images.map(({ file }) => file)
    for (const file of [...rows.keys()]) if (!files.includes(file)) rows.delete(file)
    arrange(list, files.map((file) => rows.get(file).element)) // a field that is written in keeps the focus
  }

  function chosen() {
    addFiles({ files: [...chooser.files], problems: [] })
    chooser.value = '' // so that the same files can be chosen again
  }

  async function addFiles({ files, problems: before }) {
    problems.replaceChildren()
    const found = await upload(name, files, limits, (n, total) => status.say(text('bench.images.uploading', { n: formatNumber(n), total: formatNumber(total) })), [...rows.keys()])
    const all = [...before, ...found.problems]
    await update(true) // before it is said that they are there
    const said = [['added', found.added], ['existing', found.existing], ['captions', found.captions], ['masksAdded', found.masks]].filter(([key, n]) => n > 0 || key === 'added')
    status.say(said.map(([key, n]) => text(`bench.images.${key}`, { n: formatNumber(n) })).join(' · '), all.length ? 'problem' : 'good')
    if (all.length) problems.replaceChildren(problemList(all), button('pi-times', text('bench.images.dismiss'), () => problems.replaceChildren()))
  }

  const save = () => Promise.all([...rows.values()].map((row) => row.save()))

  async function takeBack() {
    await save()
    await act(async () => {
      const { changes } = await undoCaptions(name)
      const files = changes.map(({ file }) => file)
      status.say(text(files.length === 1 ? 'bench.images.undoneOne' : 'bench.images.undone', { file: files[0], n: formatNumber(files.length) }), 'good')
    })
  }

  async function act(work) {
    let failed = null
    await work().catch((error) => { failed = error })
    await update(true)
    if (failed) status.say(failed.message, 'problem')
  }

  /** Replace a text in all captions, after a look at what will change. */
  function replaceForm() {
    const find = h('input', { type: 'text', maxlength: 500 })
    const by = h('input', { type: 'text', maxlength: 1000 })
    const preview = h('div')
    const go = (onlyPreview) => act(async () => {
      preview.replaceChildren()
      await save()
      const { changes } = await replaceInCaptions(name, find.value, by.value, onlyPreview)
      const n = formatNumber(changes.length)
      if (!onlyPreview) return status.say(text('bench.images.replaced', { n }), 'good')
      preview.replaceChildren(h('ul', { class: 'fdb-changes' }, changes.map(({ file, before, after }) => h('li', {}, h('strong', {}, file), h('del', {}, before), h('ins', {}, after)))),
        changes.length ? button('pi-check', text('bench.images.replaceAll', { n }), () => go(false)) : h('div', { class: 'fdb-small' }, text('bench.images.notFound')))
    })
    return folded(text('bench.images.replace'), h('div', { class: 'fdb-fields' }, field(text('bench.images.find'), find), field(text('bench.images.by'), by)),
      button('pi-search', text('bench.images.preview'), () => go(true)), preview)
  }

  /** Captions and masks by a model: jobs, since they need a GPU. */
  function modelForm() {
    const cut = h('input', { type: 'text', maxlength: 200, placeholder: text('bench.images.cutExample') })
    const submit = (job) => act(async () => {
      await save()
      status.say(text('bench.images.queued', { job: (await submitJob(job)).job.id }), 'good')
    })
    const writeCaptions = () => {
      if (words.value.trim()) return submit({ kind: 'caption', folder: name, class_tokens: words.value.trim(), redo: false })
      status.say(text('bench.dataset.wordless', { name }), 'problem')
      words.focus()
    }
    return folded(text('bench.images.model'),
      h('div', { class: 'fdb-small' }, text('bench.images.modelHow')),
      h('div', { class: 'fdb-line' }, button('pi-comment', text('bench.images.captionAll'), writeCaptions)),
      h('div', { class: 'fdb-line' }, field(text('bench.images.cut'), cut), button('pi-user', text('bench.images.maskAll'), () => submit({ kind: 'mask', folder: name, class_word: cut.value, redo: false }))))
  }
  return { element, update, addFiles, save }
}
