// What a checkpoint is called within its run.
import { formatNumber, text } from './texts.js'

/** kohya's names: NAME-000025 after an epoch, NAME-step00000100, NAME at the end. */
export function shortName(run, file) {
  const name = file.replace(/\.safetensors$/, '')
  const rest = name.startsWith(run) ? name.slice(run.length) : null
  if (rest === '') return text('training.final')
  const epoch = rest?.match(/^-(\d{6})$/)
  const step = rest?.match(/^-step(\d{8})$/)
  if (epoch) return text('training.epochName', { n: formatNumber(+epoch[1]) })
  return step ? stepName(+step[1]) : name
}

export const stepName = (step) => text('training.step', { step: formatNumber(step) })
