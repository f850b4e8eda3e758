// The view "Train": the form, and the queue below it.
import { h } from '../elements.js'
import { fetchRuns } from '../server.js'
import { attempt, inOrder, troublePlace } from './parts.js'
import { createQueue } from './queue.js'
import { fetchConcepts, fetchDatasets, fetchJobs, fetchPresets } from './requests.js'
import { createStart } from './start.js'

const CHOICES = 10_000 // milliseconds after which the form looks again for what there is to choose from

/** openRun(name): shows a run. Returns {element, update(), useConcept(name), useRun(name), useCheckpoint(run, lora)}. */
export function createTrain(openRun) {
  const trouble = troublePlace()
  const start = createStart(() => update(true))
  const queue = createQueue({ changed: () => update(), openRun, again: start.useJob })
  const element = h('div', { class: 'fdb-body' }, trouble.element, start.element, queue.element)
  const order = inOrder()
  let looked = 0

  async function update(all = false) {
    const mine = order.asks()
    try {
      const jobs = await fetchJobs()
      if (all || Date.now() - looked > CHOICES) await choices(jobs.jobs)
      if (!order.isNewest(mine)) return
      queue.show(jobs)
      trouble.show()
      start.update()
      await queue.update()
    } catch (error) {
      trouble.show(error)
    }
  }

  async function choices(jobs) {
    const [{ concepts }, { datasets }, { presets, usual }, { runs }] = await Promise.all([fetchConcepts(), fetchDatasets(), fetchPresets(), fetchRuns()])
    start.show({ concepts, datasets, presets, usual, runs, jobs })
    looked = Date.now()
  }

  /** Fill the form, once it knows what there is to choose from; what a user typed until then would be lost. */
  const prepared = (act) => async (...facts) => {
    element.scrollTop = 0
    await start.fillWith(async () => {
      await update(true)
      await attempt(() => act(...facts))
    })
  }
  return { element, update, useConcept: prepared(start.useConcept), useRun: prepared(start.useRun), useCheckpoint: prepared(start.useCheckpoint) }
}
