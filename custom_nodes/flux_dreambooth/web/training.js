// The sidebar tab "Training" with its views, and the news of new checkpoints wherever the user is.
import { app } from '../../scripts/app.js'
import { addStyle, addStyleSheet } from './elements.js'
import { putIntoGraph, refreshLists } from './graph.js'
import { askRun, fetchRun, fetchRuns } from './server.js'
import { formatNumber, language, loadTexts, text } from './texts.js'
import { createRuns } from './training_panel.js'
import { isBeingCompared } from './workbench/comparison.js'
import { createImages } from './workbench/images.js'
import { createTabs } from './workbench/tabs.js'
import { createTrain } from './workbench/train.js'

const WATCHING = 2000 // milliseconds between two looks while the tab is open
const LISTENING = 6000 // and while it is closed
const NOTIFY = 'FluxDreamBooth.NotifyCheckpoints'

let panel = null // the views, which keep what the user has written while the tab is closed
let selected = null
let compared = null // the run whose curve is shown with the selected one's
let timer = 0
let known = null // the newest checkpoint of each run, by its name; null before the first look

app.registerExtension({
  name: 'FluxDreamBooth.Training',
  settings: [{ id: NOTIFY, name: 'Notify about new checkpoints', type: 'boolean', defaultValue: true, category: ['FLUX DreamBooth', 'Training', 'NotifyCheckpoints'] }],
  commands: [{ id: 'FluxDreamBooth.UseNewestCheckpoint', label: 'Put the newest checkpoint into the graph', icon: 'pi pi-bolt', function: useNewest }],
  async setup() {
    addStyle()
    addStyleSheet('./workbench/style.css')
    await loadTexts().catch(() => {})
    app.extensionManager.registerSidebarTab({
      id: 'fluxDreamBooth',
      icon: 'pi pi-chart-line',
      title: 'fluxDreamBooth.training.title',
      tooltip: 'fluxDreamBooth.training.tooltip',
      type: 'custom',
      render: open,
      destroy: () => { panel?.images.leave() }
    })
    document.addEventListener('visibilitychange', () => {
      if (document.hidden) panel?.images.leave() // the page may be closed
      look()
    })
    look()
  }
})

function open(element) {
  if (panel?.language !== language()) panel = createPanel()
  element.style.height = '100%'
  element.replaceChildren(panel.tabs.element)
  requestAnimationFrame(() => { // once it has its place
    const { left, top } = element.getBoundingClientRect()
    panel.tabs.element.style.setProperty('--fdb-left', `${left}px`)
    panel.tabs.element.style.setProperty('--fdb-top', `${top}px`)
  })
  look()
}

function createPanel() {
  const toForm = (act) => (...facts) => {
    panel.tabs.show('train')
    return act(...facts)
  }
  const runs = createRuns({
    select, compare, ask, use, start: () => panel.tabs.show('train'),
    goOn: toForm((run) => panel.train.useRun(run)), trainOn: toForm((run, lora) => panel.train.useCheckpoint(run, lora))
  })
  const train = createTrain((run) => {
    selected = run
    panel.tabs.show('runs')
  })
  const images = createImages(toForm((concept, words) => train.useConcept(concept, words)))
  const tabs = createTabs({ images, train, runs }, 'runs', (name) => {
    if (name !== 'images') images.leave()
    look()
  })
  return { language: language(), tabs, images, train, runs }
}

const isOpen = () => Boolean(panel?.tabs.element.isConnected)

/** One look at the server now, the next one later; a page that nobody sees does not look. */
async function look() {
  clearTimeout(timer)
  if (!document.hidden) {
    await update().catch((error) => panel?.runs.showError(error.message))
    clearTimeout(timer)
    timer = setTimeout(look, isOpen() ? WATCHING : LISTENING)
  }
}

async function update() {
  const shown = isOpen() ? panel.tabs.shown() : null
  if (shown && shown !== 'runs') await panel[shown].update() // it says itself what fails
  const overview = await fetchRuns()
  await tellNews(overview.runs)
  if (shown !== 'runs') return
  if (!overview.runs.some(({ name }) => name === selected)) {
    selected = (overview.runs.find(({ state }) => state === 'running') ?? overview.runs[0])?.name ?? null
  }
  const name = selected
  const names = overview.runs.map((run) => run.name)
  if (compared === name || !names.includes(compared)) compared = null
  const [run, other] = await Promise.all([name, compared].map((each) => each === null ? null : fetchRun(each)))
  const isCompared = run ? await isBeingCompared(name) : false
  panel.runs.showRuns(overview, selected)
  if (run && name === selected) panel.runs.showRun(run, other, names, isCompared)
}

async function tellNews(runs) {
  const before = known
  known = new Map(runs.map(({ name, newest_checkpoint: newest }) => [name, newest && `${newest.step} ${newest.file}`]))
  const news = before ? runs.filter(({ name }) => known.get(name) && known.get(name) !== before.get(name)) : []
  if (!news.length) return
  await refreshLists()
  if (app.extensionManager.setting.get(NOTIFY) === false) return
  for (const { newest_checkpoint: { file, step } } of news) {
    toast('success', text('training.landed'), `${file} · ${text('training.step', { step: formatNumber(step) })}`)
  }
}

function select(name) {
  selected = name
  look()
}

function compare(name) {
  compared = name
  look()
}

async function ask(name, wish) {
  if (wish === 'stop' && !await confirmStop(name)) return
  await attempt(() => askRun(name, wish))
  look()
}

const confirmStop = (name) => app.extensionManager.dialog.confirm({ title: text('stop.label'), message: text('stop.confirm', { name }) })

async function use(lora) {
  await attempt(async () => toast('info', await putIntoGraph(lora)))
}

async function useNewest() {
  await attempt(async () => {
    const [{ name } = {}] = (await fetchRuns()).runs
    const newest = name && (await fetchRun(name)).checkpoints.find(({ lora }) => lora)
    if (!newest) throw new Error(text('training.noCheckpoint'))
    toast('info', await putIntoGraph(newest.lora))
  })
}

async function attempt(act) {
  try {
    await act()
  } catch (error) {
    toast('error', text('training.failed'), error.message)
  }
}

function toast(severity, summary, detail) {
  app.extensionManager.toast.add({ severity, summary, detail, life: severity === 'error' ? 10000 : 5000 })
}
