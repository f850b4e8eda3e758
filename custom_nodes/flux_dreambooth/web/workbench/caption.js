// One image of a concept with its caption, which is edited in place.
import { h } from '../elements.js'
import { formatNumber, messageIfOurs, text } from '../texts.js'
import { button, icon } from './parts.js'
import { imageUrl, writeCaption } from './requests.js'

const CHANGED = 409 // the caption is no longer what the page has seen

/** written(canUndo): called after the caption was stored. Returns {element, update(image, masks, training, said, asked), save(), isDirty()}. */
export function createImage(concept, file, limits, written) {
  const picture = h('img', { alt: file, loading: 'lazy', width: 96, height: 96 })
  const crop = h('span', { class: 'fdb-crop', hidden: true })
  const link = h('a', { target: '_blank', rel: 'noopener', title: text('bench.images.large') }, picture, crop)
  const facts = h('span', { class: 'fdb-small' })
  const caption = h('textarea', { rows: 3, maxlength: limits.caption_characters, spellcheck: 'true', 'aria-label': text('bench.images.caption', { file }), placeholder: text('bench.images.noCaption') })
  const messages = h('ul', { class: 'fdb-problems' })
  const trouble = h('div', { role: 'alert' })
  const state = h('span', { class: 'fdb-small', 'aria-live': 'polite' })
  const element = h('li', { class: 'fdb-image' }, link,
    h('div', { class: 'fdb-image-side' }, h('div', { class: 'fdb-line' }, h('span', { class: 'fdb-name' }, file), facts), caption, state, trouble, messages))
  let saved = null // the caption as the server has it; null if there is none
  let savedAt = 0 // when that was heard, on the page's clock
  let failed = false // whether the last save did not reach the server
  let undecided = false // whether the user has to choose between two captions
  let saving = Promise.resolve()
  let shown = ''

  const isDirty = () => caption.value.trimEnd() !== (saved ?? '')
  caption.addEventListener('input', () => { state.textContent = isDirty() ? text('bench.images.unsaved') : '' })
  caption.addEventListener('blur', () => { if (!undecided) save() }) // else the buttons would be drawn anew under a click
  caption.addEventListener('keydown', (event) => {
    const saves = (event.ctrlKey || event.metaKey) && ['Enter', 's'].includes(event.key)
    if (saves) save()
    else if (event.key === 'Escape' && isDirty()) take(saved)
    else return
    event.preventDefault() // nor does the browser save the page
  })

  function save() {
    saving = saving.then(store)
    return saving
  }

  async function store() {
    if (!isDirty()) return
    const value = caption.value
    try {
      const answer = await writeCaption(concept, file, value, saved)
      keep(answer.caption)
      failed = false
      trouble.replaceChildren()
      state.replaceChildren(...isDirty() ? [text('bench.images.unsaved')] : [icon('pi-check'), ` ${text('bench.images.saved')}`])
      written(answer.can_undo)
    } catch (error) {
      if (error.status === CHANGED && 'caption' in (error.content ?? {})) return disagree(error.content.caption)
      failed = error.status === undefined
      state.textContent = text('bench.images.unsaved')
      trouble.replaceChildren(h('div', { class: 'fdb-problem' }, icon('pi-exclamation-triangle'), error.message))
    }
  }

  /** Somebody else has written another caption meanwhile; the user chooses. */
  function disagree(theirs) {
    undecided = true
    failed = false
    state.textContent = text('bench.images.unsaved')
    trouble.replaceChildren(h('div', { class: 'fdb-problem' }, icon('pi-exclamation-triangle'), text('bench.images.theirs', { caption: theirs ?? '' })),
      h('div', { class: 'fdb-actions' },
        button('pi-check', text('bench.images.keepMine'), () => { undecided = false; keep(theirs); save() }),
        button('pi-undo', text('bench.images.takeTheirs'), () => take(theirs))))
  }

  function keep(text) {
    saved = text
    savedAt = performance.now()
  }

  function take(text) {
    undecided = failed = false
    keep(text)
    caption.value = text ?? ''
    state.textContent = ''
    trouble.replaceChildren()
  }

  /**
   * image: of the server, which was asked at `asked`; masks: whether what a mask leaves out is dark; training: how a check
   * says that it is trained, or null; said: messages of the trainer.
   */
  function update(image, masks, training, said, asked) {
    const isNews = image.caption !== saved && asked >= savedAt // an answer may be older than what was saved meanwhile
    if (isNews && !isDirty()) take(image.caption)
    else if (failed && asked >= savedAt) save() // the server answers again
    const now = JSON.stringify([image, masks, training, said])
    if (now === shown) return
    shown = now
    const mask = masks && image.mask
    picture.src = imageUrl(concept, image, { mask })
    link.href = imageUrl(concept, image, { side: 1024, mask })
    crop.hidden = !training || !isCropped(training)
    if (training) Object.assign(crop.style, placeOf(training))
    facts.textContent = [`${formatNumber(image.width)} × ${formatNumber(image.height)}`, image.mask && text('bench.images.mask'), image.by === 'model' && text('bench.images.byModel')].filter(Boolean).join(' · ')
    const notes = [...image.messages.filter(({ text: line }) => image.caption !== null || line !== NO_CAPTION), ...said]
    messages.replaceChildren(...notes.map(({ level, text: line }) => h('li', {}, icon(level === 'problem' ? 'pi-times-circle' : 'pi-info-circle'),
      h('span', {}, h('strong', {}, text(`bench.levels.${level}`), ' '), messageIfOurs(line)))),
    ...training ? [h('li', {}, icon('pi-image'), h('span', {}, trainedAs(training)))] : [])
  }
  return { element, update, save, isDirty }
}

const NO_CAPTION = 'It has no caption.' // the empty field says so, in the user's language

const isCropped = ({ bucket, resized }) => bucket[0] < resized[0] || bucket[1] < resized[1]

/** Where the crop is on a square that shows the image completely. */
function placeOf({ bucket, resized, crop }) {
  const longest = Math.max(...resized)
  const percent = (pixels) => `${100 * pixels / longest}%`
  const margin = resized.map((side) => (longest - side) / 2)
  return { left: percent(margin[0] + crop[0]), top: percent(margin[1] + crop[1]), width: percent(bucket[0]), height: percent(bucket[1]) }
}

function trainedAs(training) {
  const { bucket: [width, height], resized, crop: [left, top] } = training
  const size = `${formatNumber(width)} × ${formatNumber(height)}`
  return text(isCropped(training) ? 'bench.images.trainedCropped' : 'bench.images.trained', { size, left: formatNumber(left), top: formatNumber(top), x: formatNumber(resized[0] - width), y: formatNumber(resized[1] - height) })
}
