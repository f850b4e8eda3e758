// A browser that comes for the first time sees our workflow, where the server names one, in place of ComfyUI's default.
import { app } from '../../scripts/app.js'
import { fetchFirstWorkflow } from './server.js'

const OPENED = 'FluxDreamBooth.OpenedWorkflows' // names of those that were opened so, each once for a user
const PATIENCE = 30000 // milliseconds until the page has opened its own

app.registerExtension({
  name: 'FluxDreamBooth.FirstStart',
  settings: [{ id: OPENED, name: 'Workflows opened on a first start', type: 'hidden', defaultValue: [] }],
  setup() {
    if (isKnownBrowser() || new URLSearchParams(location.search).has('template')) return
    openFirst().catch((error) => console.warn('FluxDreamBooth: the first workflow was not opened:', error))
  }
})

/** Whether this browser keeps something from an earlier visit; asked before the page has stored anything itself. */
function isKnownBrowser() {
  return [...Object.keys(localStorage), ...Object.keys(sessionStorage)].some((key) => /workflow/i.test(key))
}

async function openFirst() {
  const { name, ours } = await fetchFirstWorkflow()
  const { setting, workflow } = app.extensionManager
  const opened = setting.get(OPENED) ?? []
  if (!name || opened.includes(name) || hasOwn(workflow, ours)) return
  const found = workflow.getWorkflowByPath(pathOf(name))
  if (!found?.isPersisted) return // the user has deleted it
  const untouched = await pagesOwn()
  if (!untouched) return
  await found.load()
  await app.loadGraphData(found.activeState, true, true, found)
  await workflow.closeWorkflow(untouched)
  await setting.set(OPENED, [...opened, name])
}

const pathOf = (name) => `workflows/${name}.json`

function hasOwn(workflow, ours) {
  const known = ours.map(pathOf)
  return workflow.workflows.some(({ isPersisted, path }) => isPersisted && !known.includes(path))
}

/** The default graph, once the page has opened it; null when the user was faster, or it was another. */
async function pagesOwn() {
  const { workflow } = app.extensionManager
  const end = Date.now() + PATIENCE
  while (!workflow.activeWorkflow && Date.now() < end) await new Promise((resolve) => setTimeout(resolve, 50))
  const active = workflow.activeWorkflow
  return active?.isTemporary && !active.isModified && workflow.openWorkflows.length === 1 ? active : null
}
