// A browser that comes for the first time sees our workflow, where the server names one, in place of ComfyUI's default.
import { app } from '../../scripts/app.js'
import { fetchFirstWorkflow, seedWorkflows } from './server.js'

const OPENED = 'FluxDreamBooth.OpenedWorkflows' // names of those that were opened so, each once for a user
const TUTORIAL = 'Comfy.TutorialCompleted' // until it is set, the page opens ComfyUI's own templates
const PATIENCE = 30000 // milliseconds until the page has opened its own
const known = isKnownBrowser() // asked now, before the page has stored a graph itself

app.registerExtension({
  name: 'FluxDreamBooth.FirstStart',
  settings: [{ id: OPENED, name: 'Workflows opened on a first start', type: 'hidden', defaultValue: [] }],
  async setup() {
    if (known || new URLSearchParams(location.search).has('template')) return
    try {
      const name = await firstWorkflow()
      if (name) openInstead(name).catch(report) // not awaited: the page opens its own graph only after our setup
    } catch (error) {
      report(error)
    }
  }
})

const report = (error) => console.warn('FluxDreamBooth: the first workflow was not opened:', error)

/** Whether this browser keeps a graph from an earlier visit. */
function isKnownBrowser() {
  return [localStorage, sessionStorage].some((storage) =>
    Object.keys(storage).some((key) => /workflow/i.test(key) && !isEmptyIndex(storage.getItem(key))))
}

/** The list of drafts that newer pages write at once, before there is any. */
function isEmptyIndex(stored) {
  try {
    const { order, entries } = JSON.parse(stored)
    return Array.isArray(order) && !order.length && !Object.keys(entries ?? {}).length
  } catch {
    return false
  }
}

/** The name of the workflow to open, which is in the user's folder then, or nothing. */
async function firstWorkflow() {
  const { name, ours, seeded } = await fetchFirstWorkflow()
  const { setting, workflow } = app.extensionManager
  if (!name || setting.get(OPENED)?.includes(name) || hasOwn(workflow, ours)) return null
  if (!seeded) { // a user of --multi-user: the launcher prepares the default user's folder only
    await seedWorkflows()
    await workflow.syncWorkflows()
  }
  const found = workflow.getWorkflowByPath(pathOf(name))
  if (!found?.isPersisted) return null // the user has deleted it
  if (!setting.get(TUTORIAL)) await setting.set(TUTORIAL, true)
  return name
}

const pathOf = (name) => `workflows/${name}.json`

function hasOwn(workflow, ours) {
  const paths = ours.map(pathOf)
  return workflow.workflows.some(({ isPersisted, path }) => isPersisted && !paths.includes(path))
}

async function openInstead(name) {
  const { setting, workflow } = app.extensionManager
  const untouched = await pagesOwn()
  if (!untouched) return
  const found = workflow.getWorkflowByPath(pathOf(name))
  await found.load()
  await app.loadGraphData(found.activeState, true, true, found)
  await workflow.closeWorkflow(untouched)
  await setting.set(OPENED, [...setting.get(OPENED) ?? [], name])
}

/** The default graph, once the page has opened it; null when the user was faster, or it was another. */
async function pagesOwn() {
  const { workflow } = app.extensionManager
  const end = Date.now() + PATIENCE
  while (!workflow.activeWorkflow && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 50))
  const active = workflow.activeWorkflow
  return active?.isTemporary && !active.isModified && workflow.openWorkflows.length === 1 ? active : null
}
