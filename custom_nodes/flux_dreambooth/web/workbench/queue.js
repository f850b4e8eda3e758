// The queue: whether a trainer takes jobs, and every job with its state, its messages, its log and what may be asked of it.
import { h, section } from '../elements.js'
import { formatDuration, formatNumber, text } from '../texts.js'
import { attempt, button, confirm, icon, keyedList, problemList } from './parts.js'
import { actOnJob, fetchJob, fetchLog, moveJob, pauseQueue } from './requests.js'
import { sheetPictures } from './sheets.js'

const COMMAND = 'sh launch_train.sh --serve'
const ICONS = {
  waiting: 'pi-clock', running: 'pi-spin pi-spinner', paused: 'pi-pause', stopped: 'pi-stop-circle', interrupted: 'pi-bolt',
  failed: 'pi-times-circle', finished: 'pi-check-circle', cancelled: 'pi-ban'
}
const SHOWN = 8 // jobs that have ended, before the rest is asked for
const ENDED = ['finished', 'cancelled']
const MOST_LOG = 64 * 1024 // characters on the page

/** actions: changed(), openRun(name), again(job, settings). Returns {element, show(overview)}. */
export function createQueue(actions) {
  const serving = h('div', { class: 'fdb-serving' })
  const pause = h('span')
  const list = h('ul', { class: 'fdb-jobs' })
  const none = h('div', { class: 'fdb-small' }, text('bench.queue.none'))
  const more = h('div')
  const drawMore = section(more, (n) => n > 0 && button('pi-chevron-down', text('bench.queue.more', { n: formatNumber(n) }), () => { all = true; show(overview) }))
  const element = h('div', { class: 'fdb-queue' }, serving, h('h3', {}, text('bench.queue.title'), pause), none, list, more)
  const open = new Map() // id -> the log of a job that is unfolded
  let all = false
  let overview = null
  let said = ''
  const draw = keyedList(list, ({ job }) => job.id, ({ job, ...facts }) => jobRow(job, facts, { ...actions, act, move, unfold, log: open.get(job.id) }))

  function show(found) {
    overview = found
    const told = JSON.stringify([found.serving, found.found, found.writable, found.paused, found.left_out])
    if (told !== said) {
      said = told
      drawServing(serving, found)
      pause.replaceChildren(button(found.paused ? 'pi-play' : 'pi-pause', text(found.paused ? 'bench.queue.goOn' : 'bench.queue.hold'),
        () => attempt(() => pauseQueue(!found.paused)).then(actions.changed), { class: 'fdb-button fdb-hold', title: text('bench.queue.holdTip') }))
    }
    const waiting = found.jobs.filter(({ state }) => state === 'waiting').map(({ id }) => id)
    let ended = 0
    const jobs = found.jobs.filter(({ state }) => all || !ENDED.includes(state) || ended++ < SHOWN)
    for (const id of [...open.keys()]) if (!jobs.some((job) => job.id === id)) open.delete(id)
    draw(jobs.map((job) => ({ job, isOpen: open.has(job.id), first: waiting[0] === job.id, last: waiting.at(-1) === job.id })))
    none.hidden = found.jobs.length > 0
    drawMore(found.jobs.length - jobs.length)
  }

  async function act(job, action) {
    const running = job.state === 'running'
    if (action === 'cancel' && running && !await confirm(text('bench.actions.cancel'), text('bench.queue.confirm', { job: job.id }))) return
    await attempt(() => actOnJob(job.id, action))
    actions.changed()
  }

  /** One place up (-1) or down (1) among those that wait. */
  async function move(job, by) {
    const waiting = overview.jobs.filter(({ state }) => state === 'waiting').map(({ id }) => id)
    const rest = waiting.filter((id) => id !== job.id)
    await attempt(() => moveJob(job.id, rest[waiting.indexOf(job.id) + by] ?? null))
    actions.changed()
  }

  function unfold(job) {
    if (!open.delete(job.id)) open.set(job.id, createLog(job.id))
    show(overview)
    update()
  }

  const update = () => Promise.all([...open].map(([id, log]) => log.update(overview.jobs.find((job) => job.id === id))))
  return { element, show, update }
}

function drawServing(element, { serving, found, writable, paused, left_out: leftOut }) {
  const line = (sign, ...content) => h('div', { class: 'fdb-line fdb-said' }, icon(sign), h('span', {}, ...content))
  const command = h('code', { tabindex: 0 }, COMMAND)
  const copy = button('pi-copy', text('bench.queue.copy'), async () => {
    const selection = getSelection()
    selection.selectAllChildren(command)
    await navigator.clipboard?.writeText(COMMAND).catch(() => {}) // without https it stays selected
  }, { small: true })
  element.classList.toggle('fdb-absent', !serving)
  element.replaceChildren(...[
    serving
      ? line('pi-check-circle', h('strong', {}, text('bench.queue.serving')), serving.message && ` ${serving.message}`, serving.gpu && h('div', { class: 'fdb-small' }, serving.gpu))
      : line('pi-exclamation-triangle', h('strong', {}, text('bench.queue.absent')), ' ', text('bench.queue.absentHow'), h('div', { class: 'fdb-command' }, command, copy)),
    paused && line('pi-pause', text('bench.queue.held')),
    found && !writable && line('pi-exclamation-triangle', text('bench.queue.readOnly')),
    leftOut.length > 0 && line('pi-exclamation-triangle', text('bench.queue.leftOut', { files: leftOut.join(', ') }))
  ].filter(Boolean))
}

function jobRow(job, { isOpen, first, last }, { act, move, unfold, openRun, again, log }) {
  const ask = (action, sign) => job.can.includes(action) &&
    button(sign, text(`bench.actions.${action}`), () => act(job, action), { key: action, disabled: job.asked === action, class: `fdb-button fdb-${action}` })
  const what = job.kind === 'train' ? [] : [text(`bench.kinds.${job.kind}`)]
  const facts = [...what, job.asked && text(`bench.asked.${job.asked}`), job.ended && job.started && formatDuration(job.ended - job.started)].filter(Boolean)
  return h('li', { class: 'fdb-job' },
    h('div', { class: 'fdb-line' }, h('span', { class: 'fdb-name fdb-strong' }, job.id),
      h('span', { class: `fdb-state fdb-state-${job.state}` }, icon(ICONS[job.state]), ' ', text(`bench.states.${job.state}`))),
    facts.length > 0 && h('div', { class: 'fdb-small' }, facts.join(' · ')),
    job.message && h('div', { class: 'fdb-message' }, job.message),
    job.problems.length > 0 && problemList(job.problems),
    h('div', { class: 'fdb-actions' },
      job.can.includes('move') && button('pi-arrow-up', text('bench.actions.up'), () => move(job, -1), { small: true, key: 'up', disabled: first }),
      job.can.includes('move') && button('pi-arrow-down', text('bench.actions.down'), () => move(job, 1), { small: true, key: 'down', disabled: last }),
      ask('pause', 'pi-pause'), ask('resume', 'pi-play'), ask('cancel', 'pi-times'),
      job.run && button('pi-chart-line', text('bench.actions.run'), () => openRun(job.run), { key: 'run' }),
      ['train', 'check'].includes(job.kind) && button('pi-copy', text('bench.actions.again'), () => attempt(async () => again(job, (await fetchJob(job.id)).settings)), { key: 'again' }),
      button(isOpen ? 'pi-chevron-up' : 'pi-chevron-down', text('bench.actions.log'), () => unfold(job), { key: 'log', 'aria-expanded': String(isOpen) })),
    isOpen && log.element)
}

/** What a job has printed and found; it grows while it is unfolded. */
function createLog(id) {
  const result = h('div')
  const log = h('pre', { class: 'fdb-log', tabindex: 0, 'aria-label': text('bench.actions.log') }, '…')
  const element = h('div', {}, result, log)
  let next = -1
  let held = ''
  let follows = true // the end, until somebody scrolls up
  log.addEventListener('scroll', () => { follows = log.scrollTop + log.clientHeight > log.scrollHeight - 30 })
  let seen = ''

  async function update(job) {
    if (!job) return
    try {
      const state = `${job.state} ${job.attempts}`
      if (state !== seen) {
        result.replaceChildren(...results(job, await fetchJob(id)))
        seen = state
      }
      const part = await fetchLog(id, next)
      if (next < 0) held = ''
      next = part.next > part.size ? -1 : part.next
      held = (held + part.text).slice(-MOST_LOG)
      const shown = held ? asShown(held) : text('bench.queue.silent')
      if (log.textContent !== shown) log.textContent = shown
      if (follows) log.scrollTop = log.scrollHeight
    } catch (error) {
      log.textContent = error.message
    }
  }
  return { element, update }
}

/** A progress line that overwrites itself is shown as it is at its end. */
const asShown = (printed) => printed.split('\n').map((line) => line.replace(/\r+$/, '').replace(/^.*\r/, '')).join('\n')

function results(job, { result, sheets }) {
  return [
    result?.summary && h('pre', { class: 'fdb-log', tabindex: 0 }, result.summary.trim()),
    result?.warnings?.length > 0 && problemList(result.warnings),
    sheetPictures(job.output_name, sheets)
  ].filter(Boolean)
}
