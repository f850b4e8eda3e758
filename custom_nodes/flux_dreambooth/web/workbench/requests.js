// Requests to the routes for images, captions, dataset files and jobs (routes_data.py, routes_jobs.py).
import { OURS, ask, send, urlOf } from '../server.js'

const path = (...parts) => `/${parts.map(encodeURIComponent).join('/')}`

export const fetchConcepts = () => ask('/data')
export const createConcept = (name) => send('/data', { name })
export const fetchConcept = (concept) => ask(path('data', concept))
/** was: the caption that the page has seen, or null; the server refuses to replace another one. */
export const writeCaption = (concept, file, text, was) => send(path('data', concept, 'captions'), { file, text, was })
export const replaceInCaptions = (concept, find, replace, preview) => send(path('data', concept, 'replace'), { find, replace, preview })
export const undoCaptions = (concept) => send(path('data', concept, 'undo'), {})

/** file: a File of the browser's; it is sent as it is. */
export const uploadImage = (concept, file) => upload(`${path('data', concept, 'images')}?name=${encodeURIComponent(file.name)}`, file)
/** image: the name, on the server, of the image whose mask the file is. */
export const uploadMask = (concept, image, file) => upload(`${path('data', concept, 'masks')}?image=${encodeURIComponent(image)}`, file)

function upload(url, file) {
  return ask(url, { method: 'POST', headers: { ...OURS, 'Content-Type': file.type || 'application/octet-stream' }, body: file })
}

/** image: of `fetchConcept`, or a file's name. */
export function imageUrl(concept, image, { side = 256, mask = false } = {}) {
  const version = image.version ? `&version=${encodeURIComponent(image.version)}` : ''
  return urlOf(`${path('data', concept, 'images', image.file ?? image)}?side=${side}${mask ? '&mask=1' : ''}${version}`)
}

export const fetchDatasets = () => ask('/datasets')
export const writeDataset = (dataset) => send('/datasets', dataset)
/** The presets, and which of them is the usual one. */
export const fetchPresets = () => ask('/presets')
export const writePreset = (name, settings) => send('/presets', { name, settings })
export const presetUrl = (file) => urlOf(`/presets/file?file=${encodeURIComponent(file)}`)
/** file: a File of the browser's, a preset that somebody shared. */
export const uploadPreset = (file) => upload(`/presets/file?name=${encodeURIComponent(file.name)}`, file)

export const fetchJobs = () => ask('/jobs')
export const fetchJob = (job) => ask(path('jobs', job))
export const fetchLog = (job, from) => ask(`${path('jobs', job, 'log')}?from=${from}`)
export const submitJob = (job) => send('/jobs', job)
/** What a training would take; asked again until its `state` is no longer "waiting". */
export const askPlan = (job) => send('/plan', job)
/** action: pause, resume or cancel. */
export const actOnJob = (job, action) => send(path('jobs', job, action), {})
/** before: the id of another waiting job, or null for the end of the queue. */
export const moveJob = (job, before) => send(path('jobs', job, 'move'), { before })
export const pauseQueue = (paused) => send('/jobs_paused', { paused })
export const sheetUrl = (run, sheet) => urlOf(path('runs', run, 'sheets', sheet))
