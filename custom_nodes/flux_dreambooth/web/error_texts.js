// What our nodes report as an error, in the user's language where ComfyUI shows it: in its dialogs, on nodes, in its panel.
import { app } from '../../scripts/app.js'
import { api } from '../../scripts/api.js'
import { message } from './texts.js'
import { isOurs } from './widgets.js'

// This listener is here before those that open the dialog, so that they find the texts changed.
api.addEventListener('execution_error', ({ detail }) => {
  if (detail && isOurType(detail.node_type)) detail.exception_message = message(detail.exception_message ?? '')
})

app.registerExtension({
  name: 'FluxDreamBooth.ErrorTexts',
  setup() {
    const { queuePrompt } = api
    api.queuePrompt = function (...facts) {
      const answer = queuePrompt.apply(this, facts) // which the caller hears of after this page
      answer.then(translateRefusal, (error) => translateRefusal(error?.response)) // some nodes may run, others be refused
      return answer
    }
  }
})

/** An answer to POST /prompt: the text of a node's VALIDATE_INPUTS is behind the input's name in `details`. */
function translateRefusal(answer) {
  for (const { class_type: type, errors } of Object.values(answer?.node_errors ?? {})) {
    for (const error of isOurType(type) ? errors : []) {
      const before = `${error.extra_info?.input_name} - `
      if (error.type !== 'custom_validation_failed' || !error.details?.startsWith(before)) continue
      const english = error.details
      error.details = before + message(english.slice(before.length))
      const shown = answer.error
      if (typeof shown?.details === 'string') shown.details = shown.details.replaceAll(english, error.details)
    }
  }
}

function isOurType(type) {
  const constructor = LiteGraph.registered_node_types[type]
  return Boolean(constructor) && isOurs({ constructor })
}
