// What the training in the form would take, before it is started: counted by the waiting trainer, renewed with each choice.
import { h } from '../elements.js'
import { formatDuration, formatGB, formatNumber, text } from '../texts.js'
import { folded, icon, problemList, refusal } from './parts.js'
import { askPlan } from './requests.js'

const TYPING = 600 // milliseconds without a change, after which the plan is asked for
const WAITING = 700 // between two looks for an answer
const RENEW = 10_000 // and between two looks whether images or files have changed
const GIB = 2 ** 30

/** read(): the job as the server takes it; throws an Error with what is missing. Returns {element, changed(), update()}. */
export function createPlan(read) {
  const state = h('span', { class: 'fdb-small', role: 'status' })
  const facts = h('dl', { class: 'fdb-facts' })
  const more = h('div')
  const element = h('section', { class: 'fdb-plan', 'aria-label': text('bench.plan.title') }, h('h3', {}, text('bench.plan.title'), state), facts, more)
  let asked = null // the question, as JSON, that the newest answer belongs to
  let plan = null // its id
  let looked = 0
  let timer = 0
  let turn = 0 // answers to former questions are not shown

  const later = (pause) => {
    clearTimeout(timer)
    timer = setTimeout(look, pause)
  }
  const changed = () => later(TYPING)

  /** Called while the form is shown. */
  function update() {
    if (Date.now() - looked > RENEW) look()
  }

  async function look() {
    clearTimeout(timer)
    if (!element.isConnected || document.hidden) return
    looked = Date.now()
    const mine = ++turn
    let job
    try {
      job = read()
    } catch (error) {
      asked = null
      return show('bench.plan.missing', {}, h('div', { class: 'fdb-small' }, error.message))
    }
    const question = JSON.stringify(job)
    if (question !== asked) say('bench.plan.counting')
    try {
      const answer = await askPlan({ ...job, instead_of: plan })
      if (mine !== turn) return
      plan = answer.id
      if (answer.state === 'waiting') {
        say('bench.plan.counting')
        return later(WAITING)
      }
      asked = question
      if (answer.state === 'absent') return show('bench.plan.absent')
      draw(answer)
    } catch (error) {
      if (mine !== turn) return
      asked = question
      show('bench.plan.unknown', {}, refusal(error))
    }
  }

  /** The former figures stay, but are no longer the plan. */
  function say(key) {
    element.classList.toggle('fdb-stale', key === 'bench.plan.counting')
    state.replaceChildren(...key === 'bench.plan.counting' ? [icon('pi-spin pi-spinner'), ' ', text(key)] : [text(key)])
  }

  function show(key, figures = {}, ...content) {
    say(key)
    facts.replaceChildren(...Object.entries(figures).map(([name, value]) => h('div', {}, h('dt', {}, text(`bench.plan.${name}`)), h('dd', {}, value))))
    more.replaceChildren(...content)
  }

  function draw({ plan: found, problems = [], warnings = [], message, gpu_in_use: busy }) {
    if (!found) {
      return show(problems.length ? 'bench.plan.problems' : 'bench.plan.unknown', {}, problems.length ? problemList(problems) : message ?? '')
    }
    const notes = [
      text('bench.plan.epochs', { n: formatNumber(found.epochs), images: formatNumber(found.samples_per_epoch), files: formatNumber(found.checkpoints) }),
      found.start_step > 0 && text('bench.plan.continues', { n: formatNumber(found.start_step) }),
      found.images_to_generate > 0 && text('bench.plan.generates', { n: formatNumber(found.images_to_generate) }),
      busy && text('bench.plan.busy')
    ].filter(Boolean)
    const missing = busy ? 'bench.plan.later' : 'bench.plan.noGpu'
    show('bench.plan.ready', {
      steps: formatNumber(found.steps - found.start_step),
      time: found.seconds === null ? text(found.device ? 'bench.plan.unmeasured' : missing) : formatDuration(found.seconds),
      memory: found.memory_bytes === null ? text(missing) : `${formatNumber(found.memory_bytes / GIB)} GiB`,
      disk: formatGB(found.disk_bytes)
    }, h('div', { class: 'fdb-small' }, notes.join(' ')), ...warnings.length ? [folded(text('bench.plan.warnings', { n: formatNumber(warnings.length) }), problemList(warnings))] : [])
  }
  show('bench.plan.missing')
  return { element, changed, update }
}
