// What the waiting trainer says about a concept's captions while they are written: the warnings of its plan.
import { h } from '../elements.js'
import { text } from '../texts.js'
import { resolutionFor } from './dataset_form.js'
import { icon, problemList } from './parts.js'
import { askPlan, fetchDatasets, fetchPresets } from './requests.js'

const WAITING = 1000 // milliseconds between two looks for an answer
const OF_SETTINGS = /^(settings|--|disk)/ // the places of warnings that are not about images or captions

/** changed(): called after each new answer. Returns {element, look(words, isMasked), messagesOf(file)}. */
export function createLiveCheck(concept, changed) {
  const state = h('div', { class: 'fdb-small', role: 'status' })
  const notes = h('div')
  const element = h('div', { class: 'fdb-live' }, state, notes)
  let basis = null // the preset and the resolution that are asked with, once they are known
  let found = null // the warnings of the newest answer, null without one
  let plan = null
  let shown = ''
  let timer = 0
  let turn = 0

  /** Ask about the captions as they are stored now. words: the concept's trigger; isMasked: whether all images have masks. */
  async function look(words, isMasked) {
    clearTimeout(timer)
    const mine = ++turn
    if (!words) return show(null, 'bench.live.wordless')
    try {
      basis ??= await usual()
      const dataset = { subsets: [{ folder: concept, class_tokens: words, num_repeats: 1, ...isMasked && { masked_loss: true } }], general: { resolution: basis.resolution, enable_bucket: true }, compositions: 0, preservation: 0 }
      const answer = await askPlan({ output_name: null, preset: basis.preset, settings: {}, new_dataset: dataset, instead_of: plan })
      if (mine !== turn) return
      plan = answer.id
      if (answer.state === 'absent') return show(null, 'bench.live.absent')
      if (answer.state === 'waiting') {
        timer = setTimeout(() => { if (element.isConnected) look(words, isMasked) }, WAITING)
        return say('bench.live.reading')
      }
      const all = [...answer.problems ?? [], ...answer.warnings ?? []]
      const about = all.filter(({ where }) => !OF_SETTINGS.test(where))
      if (!answer.plan && !about.length) return show(null, 'bench.live.unknown') // something else is in the way, such as a missing model
      show(about, about.length ? 'bench.live.notes' : 'bench.live.clean')
    } catch {
      if (mine === turn) show(null, 'bench.live.unknown')
    }
  }

  async function usual() {
    const [{ presets, usual: preset }, { datasets }] = await Promise.all([fetchPresets(), fetchDatasets()])
    return { preset, resolution: resolutionFor(presets.find(({ file }) => file === preset)?.settings ?? {}, datasets) }
  }

  function say(key) {
    const sign = { 'bench.live.reading': 'pi-spin pi-spinner', 'bench.live.clean': 'pi-check', 'bench.live.notes': 'pi-info-circle' }[key]
    const line = text(key)
    if (state.textContent.trim() !== line) state.replaceChildren(...sign ? [icon(sign), ` ${line}`] : [line])
  }

  function show(warnings, key) {
    const now = JSON.stringify(warnings)
    found = warnings
    say(key)
    if (now === shown) return
    shown = now
    notes.replaceChildren(...found?.length ? [problemList(found.map(({ what, hint }) => ({ what, hint })))] : [])
    changed()
  }

  /** What is said about one image, as messages; null if nothing is known. */
  function messagesOf(file) {
    const name = new RegExp(`(?<![\\w.-])${file.replace(/[.*+?^${}()|[\]\\]/g, '\\$&')}(?![\\w-])`)
    return found?.filter(({ where, what }) => name.test(where) || name.test(what)).map(({ what, hint }) => ({ level: 'note', text: [what, hint].filter(Boolean).join('. ') })) ?? null
  }
  return { element, look, messagesOf }
}
