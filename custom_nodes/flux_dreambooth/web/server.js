// Requests to the node pack's routes (routes.py). workbench/requests.js has those for images, captions and jobs.
import { api } from '../../scripts/api.js'
import { message, text } from './texts.js'

const PREFIX = '/flux_dreambooth'
export const OURS = { 'X-Flux-DreamBooth': '1' } // what another site's page cannot send

export const fetchRuns = () => ask('/runs')
export const fetchRun = (name) => ask(`/runs/${encodeURIComponent(name)}`)
/** The images of one of a run's prompts, by its number, at all steps. */
export const fetchSeries = (name, number) => ask(`/runs/${encodeURIComponent(name)}/series/${encodeURIComponent(number)}`)
export const fetchLoras = () => ask('/loras')
/** A LoRA's concepts, whether a user wrote them, whether its file names them, and images of its run. */
export const fetchLora = (name) => ask(`/lora?name=${encodeURIComponent(name)}`)
export const keepTriggers = (lora, triggers) => send('/triggers', { lora, triggers })
/** Write the trigger words that are kept for a LoRA into its file. */
export const writeTriggers = (lora) => send('/triggers/file', { lora })
export const fetchFirstWorkflow = () => ask('/first_workflow')
export const seedWorkflows = () => send('/first_workflow', {})
export const askRun = (name, wish) => send(`/runs/${encodeURIComponent(name)}/${wish}`, {})
/** What is known about a Concept Prompt: prompt, the graph around it in API format; nodes, its ids there. */
export const askConceptPrompt = (prompt, nodes) => send('/concept_prompt', { prompt, nodes })

export function sampleUrl(run, file) {
  return urlOf(`/runs/${encodeURIComponent(run)}/samples/${encodeURIComponent(file)}`)
}

/** The page that `trainer compare` wrote about a run. */
export const reportUrl = (run) => urlOf(`/runs/${encodeURIComponent(run)}/report`)

export const urlOf = (path) => api.apiURL(PREFIX + path)

export function send(path, body) {
  return ask(path, { method: 'POST', headers: { ...OURS, 'Content-Type': 'application/json' }, body: JSON.stringify(body) })
}

/** The answer's JSON. Throws an Error with the server's sentence in the user's language, its status and content, or a TypeError without an answer. */
export async function ask(path, options = {}) {
  const answer = await api.fetchApi(PREFIX + path, { cache: 'no-store', ...options }).catch((error) => {
    throw error instanceof TypeError ? new TypeError(text('training.unreachable')) : error
  })
  const content = await answer.json().catch(() => ({}))
  if (answer.ok) return content
  const said = content.error === undefined ? `${answer.status} ${answer.statusText}` : message(content.error)
  throw Object.assign(new Error(said), { status: answer.status, content })
}
