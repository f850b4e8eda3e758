// Images that a LoRA's run generated, shown next to its name in every menu of LoRAs.
import { app } from '../../scripts/app.js'
import { addStyle, h } from './elements.js'
import { fetchLora, fetchLoras, sampleUrl } from './server.js'
import { formatNumber, text } from './texts.js'

const ENTRY = '.litemenu-entry, [role=option]' // of LiteGraph's menus, and of the lists of Vue nodes
const FRESH = 10000 // milliseconds for which an answer is kept
const GAP = 8 // pixels between a menu and the images next to it
const answers = new Map() // question -> {at, answer}
let shown = null // {entry, element}

app.registerExtension({
  name: 'FluxDreamBooth.Examples',
  setup() {
    addStyle()
    document.addEventListener('pointerover', ({ target }) => {
      const entry = target.closest?.(ENTRY) ?? undefined
      if (entry !== shown?.entry) showAt(entry)
    })
    document.addEventListener('pointerdown', () => showAt(null), true)
    document.addEventListener('keydown', () => showAt(null), true)
  }
})

/** Links to images of a LoRA's run; examples: {run, samples}, or null where there is no run. */
export function exampleImages(examples) {
  return (examples?.samples ?? []).map(({ file, step, prompt }) => {
    const url = sampleUrl(examples.run, file)
    return h('a', { href: url, target: '_blank', rel: 'noopener', title: `${text('training.step', { step: formatNumber(step) })}\n${prompt || file}` },
      h('img', { src: url, alt: prompt || file, loading: 'lazy' }))
  })
}

async function showAt(entry) {
  shown?.element?.remove()
  shown = entry ? { entry } : null
  const lora = entry && nameIn(entry)
  if (!lora) return
  try {
    const { loras } = await once('', fetchLoras)
    if (!loras.includes(lora)) return
    const { examples, concepts } = await once(lora, () => fetchLora(lora))
    if (!examples?.samples.length || shown?.entry !== entry || !entry.isConnected) return
    shown.element = h('div', { class: 'fdb-examples' }, exampleImages(examples),
      h('div', {}, [text('training.step', { step: formatNumber(examples.samples[0].step) }), ...concepts.map(({ trigger }) => trigger)].join(' · ')))
    document.body.append(shown.element)
    place(shown.element, entry)
    goesWith(entry)
  } catch (error) {
    console.info('FluxDreamBooth: no examples of', lora, error.message) // a file that cannot be read has none
  }
}

/** The LoRA that an entry of a menu stands for, if it is one. */
function nameIn(entry) {
  const name = entry.querySelector('[data-lora]')?.dataset.lora ?? entry.textContent.trim()
  return /\.(safetensors|sft)$/i.test(name) ? name : null
}

/** To the right of the menu, or to its left where there is no room. */
function place(element, entry) {
  const menu = (entry.closest('.litecontextmenu, [role=listbox]') ?? entry).getBoundingClientRect()
  const { width, height } = element.getBoundingClientRect()
  const right = menu.right + GAP
  element.style.left = `${right + width <= innerWidth ? right : Math.max(0, menu.left - GAP - width)}px`
  element.style.top = `${Math.max(0, Math.min(entry.getBoundingClientRect().top, innerHeight - height))}px`
}

/** The images go when the menu does. */
function goesWith(entry) {
  const look = () => {
    if (shown?.entry !== entry) return
    if (entry.isConnected && entry.checkVisibility()) requestAnimationFrame(look)
    else showAt(null)
  }
  look()
}

async function once(question, ask) {
  const kept = answers.get(question)
  if (kept && Date.now() - kept.at < FRESH) return kept.answer
  const answer = ask()
  answers.set(question, { at: Date.now(), answer })
  answer.catch(() => answers.delete(question))
  return answer
}
