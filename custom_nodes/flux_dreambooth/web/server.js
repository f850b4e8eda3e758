// Requests to the node pack's routes (routes.py).
import { api } from '../../scripts/api.js'

const PREFIX = '/flux_dreambooth'

export const fetchRuns = () => ask('/runs')
export const fetchRun = (name) => ask(`/runs/${encodeURIComponent(name)}`)
export const fetchFirstWorkflow = () => ask('/first_workflow')
export const seedWorkflows = () => send('/first_workflow', {})
export const askRun = (name, wish) => send(`/runs/${encodeURIComponent(name)}/${wish}`, {})
export const checkPrompt = (loras, text) => send('/prompt', { loras, text })

export function sampleUrl(run, file) {
  return api.apiURL(`${PREFIX}/runs/${encodeURIComponent(run)}/samples/${encodeURIComponent(file)}`)
}

function send(path, body) {
  return ask(path, { method: 'POST', headers: { 'Content-Type': 'application/json' }, body: JSON.stringify(body) })
}

/** The answer's JSON; throws an Error with the server's sentence. */
async function ask(path, options = {}) {
  const answer = await api.fetchApi(PREFIX + path, { cache: 'no-store', ...options })
  const content = await answer.json().catch(() => ({}))
  if (!answer.ok) throw new Error(content.error ?? `${answer.status} ${answer.statusText}`)
  return content
}
