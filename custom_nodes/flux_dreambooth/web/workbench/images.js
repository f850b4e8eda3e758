// The view "Images": the concepts as cards, and one of them.
import { h } from '../elements.js'
import { formatNumber, message, text } from '../texts.js'
import { createConcept as openConcept } from './concept.js'
import { button, field, icon, keyedList, troublePlace } from './parts.js'
import { createConcept, fetchConcepts, imageUrl } from './requests.js'
import { takeDrops } from './uploads.js'

const LOOK = 5000 // milliseconds between two looks at the folders

/** train(concept): prepares a training of it. Returns {element, update(), leave()}. */
export function createImages(train) {
  const trouble = troublePlace()
  const refused = troublePlace() // a name
  const cards = h('div', { class: 'fdb-cards' })
  const none = h('div', { class: 'fdb-small' }, text('bench.images.none'))
  const leftOut = h('div', { class: 'fdb-small' })
  const readOnly = h('div', { class: 'fdb-problem', hidden: true }, icon('pi-exclamation-triangle'), text('bench.images.readOnly'))
  const name = h('input', { class: 'fdb-concept-name', type: 'text', maxlength: 64, spellcheck: 'false', placeholder: text('bench.images.nameExample') })
  const create = h('form', { class: 'fdb-line fdb-create', onsubmit: add }, field(text('bench.images.newName'), name),
    h('button', { class: 'fdb-button', type: 'submit' }, icon('pi-plus'), text('bench.images.create')))
  const all = h('div', { class: 'fdb-all' }, h('h3', {}, text('bench.images.concepts')), create, refused.element, readOnly, none, cards, leftOut)
  const element = h('div', { class: 'fdb-body' }, trouble.element, all)
  const draw = keyedList(cards, (concept) => concept.name, card)
  takeDrops(all, () => refused.show(new Error(text('bench.images.dropOnCard'))))
  let limits = null
  const views = new Map() // of openConcept, by name: a caption that could not be saved is still there later
  let open = null
  let looked = 0

  async function update(now = false) {
    if (open) return open.update(now)
    if (!now && Date.now() - looked < LOOK) return
    looked = Date.now()
    try {
      const found = await fetchConcepts()
      limits = found.limits
      readOnly.hidden = !found.found || found.writable
      none.hidden = found.concepts.length > 0
      leftOut.textContent = found.left_out.length ? text('bench.images.leftOut', { files: found.left_out.map((each) => `${each.name} (${message(each.why)})`).join(', ') }) : ''
      draw(found.concepts)
      trouble.show()
    } catch (error) {
      trouble.show(error)
    }
  }

  function card({ name, images, captions, masks, cover }) {
    const counts = [text('bench.images.count', { n: formatNumber(images) }), text('bench.images.captionCount', { n: formatNumber(captions) }), masks && text('bench.images.maskCount', { n: formatNumber(masks) })]
    const drawn = h('button', { class: 'fdb-card', type: 'button', 'data-key': 'open', onclick: () => enter(name) },
      h('span', { class: `fdb-cover fdb-of-${cover.length}` }, cover.length ? cover.map((file) => h('img', { src: imageUrl(name, file), alt: '', loading: 'lazy' })) : icon('pi-images')),
      h('span', { class: 'fdb-name fdb-strong' }, name), h('span', { class: 'fdb-small' }, counts.filter(Boolean).join(' · ')))
    takeDrops(drawn, (files) => enter(name).addFiles(files))
    return drawn
  }

  function enter(concept) {
    if (!views.has(concept)) views.set(concept, openConcept(concept, limits, { back, train }))
    open = views.get(concept)
    element.replaceChildren(open.element)
    element.scrollTop = 0
    open.element.querySelector('.fdb-back').focus({ preventScroll: true })
    open.update(true)
    return open
  }

  async function back() {
    const left = open
    await left.save()
    open = null
    element.replaceChildren(trouble.element, all)
    await update(true)
  }

  async function add(event) {
    event.preventDefault()
    try {
      const { name: created } = await createConcept(name.value.trim())
      name.value = ''
      refused.show()
      if (!limits) await update(true)
      enter(created)
    } catch (error) {
      refused.show(error)
    }
  }
  return { element, update, leave: () => Promise.all([...views.values()].map((view) => view.save())) }
}
