// The job that measures which checkpoint of a run to keep; findings.js shows what it has found.
import { h } from '../elements.js'
import { text } from '../texts.js'
import { attempt, button, icon, toast } from './parts.js'
import { fetchJobs, submitJob } from './requests.js'

const UNDONE = ['waiting', 'running', 'paused', 'stopped', 'interrupted']

/** Whether a job of the queue compares the run's checkpoints, or will. */
export async function isBeingCompared(run) {
  const { jobs } = await fetchJobs()
  return jobs.some((job) => job.kind === 'compare' && job.run === run && UNDONE.includes(job.state))
}

/** The button that submits the job, or that it is in the queue; nothing for a run with a single checkpoint. */
export function compareButton(run, checkpoints, isCompared) {
  if (checkpoints.length < 2) return null
  if (isCompared) return h('span', { class: 'fdb-small' }, icon('pi-clock'), ` ${text('bench.compare.queued')}`)
  const submit = () => attempt(async () => toast('info', text('bench.images.queued', { job: (await submitJob({ kind: 'compare', run })).job.id })))
  return button('pi-sort-amount-down', text('bench.compare.label'), submit, { class: 'fdb-button fdb-use', title: text('bench.compare.tip') })
}
