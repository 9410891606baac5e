"""Chat templates that render what the families' checkpoints publish.

The templates are written here. What they must render is what these publish: `chat_template.json` of llava-v1.6-mistral-7b-hf
and -vicuna-7b-hf, llava-onevision-qwen2-0.5b-ov-hf, Qwen2-VL-2B-Instruct, gemma-3-4b-it and SmolVLM-Instruct, as quoted in
public code; Gemma 4's, as llama.cpp has it; transformers' default for SmolVLM; and, by what is in use for them elsewhere,
InternVL, llava-v1.6-34b-hf, llama3-llava-next-8b-hf, Idefics3 and Mistral's own.
"""


def _filled(template: str, **parts: str) -> str:
    for name, part in parts.items():
        template = template.replace(f"@{name}@", part)
    return template


# What messages hold, part by part; or pictures first and texts after them, as the LLaVA templates have it.
IN_ORDER = """{%- for part in message.content -%}
{%- if part.type == 'image' %}{{ '@image@' }}{% elif part.type == 'video' %}{{ '@video@' }}{% else %}{{ part.text }}{% endif -%}
{%- endfor -%}"""
PICTURES = "{%- for part in message.content if part.type == 'image' %}{{ '@image@' }}{% endfor -%}"
TEXTS = "{%- for part in message.content if part.type == 'text' %}{{ @text@ }}{% endfor -%}"

INTERNVL = _filled(
    """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}@parts@{% endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}""",
    parts=_filled(IN_ORDER, image="<IMG_CONTEXT>\\n", video="<video>\\n"),
)
NEXT_MISTRAL = _filled(
    """{%- for message in messages -%}
{%- if message.role == 'system' -%}{{ '<<SYS>>\\n' + message.content[0].text + '\\n<</SYS>>\\n\\n' }}
{%- elif message.role == 'user' -%}{{ '[INST] ' }}@pictures@@texts@{{ ' [/INST]' }}
{%- elif message.role == 'assistant' -%}{{ ' ' + message.content[0].text + '<\\\\s> ' }}
{%- else -%}{{ raise_exception('roles') }}{%- endif -%}
{%- endfor -%}""",
    pictures=_filled(PICTURES, image="<image>\\n"),
    texts=_filled(TEXTS, text="part.text"),
)
_MISTRAL = """{%- if messages[0].role == 'system' -%}
{%- set system = messages[0].content + '\\n\\n' -%}{%- set rest = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set rest = messages -%}{%- endif -%}
{{ bos_token }}
{%- for message in rest -%}
{%- if message.role not in ('user', 'assistant') %}{{ raise_exception('roles') }}{% endif -%}
{%- if message.role == 'user' -%}{{ '[INST] ' + (system if loop.@turn@ else '') + message.content + ' [/INST]' }}
{%- else -%}{{ ' ' + message.content + '</s>' }}{%- endif -%}
{%- endfor -%}"""
MISTRAL, MISTRAL_LAST = _filled(_MISTRAL, turn="first"), _filled(_MISTRAL, turn="last")
NEXT_VICUNA = _filled(
    """{%- for message in messages -%}
{%- if message.role != 'system' %}{{ message.role.upper() + ': ' }}{% endif -%}@pictures@@texts@
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'ASSISTANT:' }}{% endif -%}""",
    pictures=_filled(PICTURES, image="<image>\\n"),
    texts=_filled(TEXTS, text="part.text + ' '"),
)
NEXT_YI = _filled(
    """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + '\\n' }}@pictures@@texts@{{ '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}""",
    pictures=_filled(PICTURES, image="<image>\\n"),
    texts=_filled(TEXTS, text="part.text"),
)
NEXT_LLAMA3 = _filled(
    """{%- for message in messages -%}
{{ '<|start_header_id|>' + message.role + '<|end_header_id|>\\n\\n' }}@pictures@@texts@
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{% endif -%}""",
    pictures=_filled(PICTURES, image="<image>"),
    texts=_filled(TEXTS, text="'\\n' + part.text + '<|eot_id|>'"),
)
ONEVISION = _filled(
    """{%- for message in messages -%}
{{ '<|im_start|>' + message.role + ' ' }}@pictures@@texts@{{ '<|im_end|>' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}""",
    pictures=_filled(PICTURES, image="<image>"),
    texts=_filled(TEXTS, text="'\\n' + part.text"),
)
_DEFAULT = """{%- if loop.first and message.role != 'system' -%}
{{ '<|im_start|>system\\nYou are a helpful assistant.<|im_end|>\\n' }}
{%- endif -%}"""
QWEN2 = _filled(
    """{%- for message in messages -%}@default@
{{ '<|im_start|>' + message.role + '\\n' + message.content + '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}""",
    default=_DEFAULT,
)
_IDEFICS = """{{ '@bos@' }}
{%- for message in messages -%}
{{ message.role.capitalize() + (':' if message.content[0].type == 'image' else ': ') }}@parts@{{ '<end_of_utterance>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'Assistant:' }}{% endif -%}"""
SMOLVLM = _filled(_IDEFICS, bos="<|im_start|>", parts=_filled(IN_ORDER, image="<image>", video="<video>"))
IDEFICS3 = _filled(_IDEFICS, bos="<|begin_of_text|>", parts=_filled(IN_ORDER, image="<image>", video="<video>"))
_NUMBERED = """{%- for part in message.content -%}
{%- if part.type in ('image', 'video') -%}{%- set count.value = count.value + 1 -%}
{%- if add_vision_id %}{{ 'Picture ' ~ count.value ~ ': ' }}{% endif -%}
{{ '<|vision_start|><|' + part.type + '_pad|><|vision_end|>' }}
{%- else -%}{{ part.text }}{%- endif -%}
{%- endfor -%}"""
QWEN2_5_VL = _filled(
    """{%- set count = namespace(value=0) -%}
{%- for message in messages -%}@default@
{{ '<|im_start|>' + message.role + '\\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}@parts@{% endif -%}
{{ '<|im_end|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}""",
    parts=_NUMBERED,
    default=_DEFAULT,
)
QWEN3_VL = _filled(
    """{%- set count = namespace(value=0) -%}
{%- macro words(message) -%}
{%- if message.content is string %}{{ message.content }}{% else %}@parts@{% endif -%}
{%- endmacro -%}
{%- if tools -%}{{ '<|im_start|>system\\n' + ((words(messages[0]) + '\\n\\n') if messages[0].role == 'system' else '') }}
{{- '# Tools\\n\\nYou may call one or more functions.\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor -%}{{ '\\n</tools><|im_end|>\\n' }}
{%- elif messages[0].role == 'system' -%}{{ '<|im_start|>system\\n' + words(messages[0]) + '<|im_end|>\\n' }}{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '<|im_start|>user\\n' + words(message) + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' -%}{{ '<|im_start|>assistant\\n' + words(message) }}
{%- for call in message.tool_calls or [] -%}
{{ '\\n<tool_call>\\n' + call.function | tojson + '\\n</tool_call>' }}{%- endfor -%}{{ '<|im_end|>\\n' }}
{%- elif message.role == 'tool' -%}
{%- if loop.index0 and messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif -%}
{{ '\\n<tool_response>\\n' + words(message) + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif -%}
{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}""",
    parts=_NUMBERED,
)
GEMMA3 = """{{ bos_token }}
{%- if messages[0].role == 'system' -%}
{%- set system = (messages[0].content if messages[0].content is string else messages[0].content[0].text) + '\\n\\n' -%}
{%- set rest = messages[1:] -%}
{%- else -%}{%- set system = '' -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}
{%- if (message.role == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('alternate') }}{% endif -%}
{{ '<start_of_turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' + (system if loop.first else '') }}
{%- if message.content is string -%}{{ message.content | trim }}
{%- else -%}
{%- for part in message.content -%}
{%- if part.type == 'image' %}{{ '<start_of_image>' }}{% else %}{{ part.text | trim }}{% endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<end_of_turn>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<start_of_turn>model\\n' }}{% endif -%}"""
GEMMA4 = """{{ bos_token }}
{%- if enable_thinking or tools or messages[0].role in ('system', 'developer') -%}
{{ '<|turn>system\\n' + ('<|think|>' if enable_thinking else '') }}
{%- if messages[0].role in ('system', 'developer') -%}
{%- if messages[0].content is string %}{{ messages[0].content | trim }}
{%- else %}{%- for part in messages[0].content %}{{ part.text | trim }}{% endfor %}{% endif -%}
{%- set rest = messages[1:] -%}
{%- else -%}{%- set rest = messages -%}{%- endif -%}
{%- for tool in tools or [] %}{{ '<|tool>declaration:' + tool.function.name + '{}<tool|>' }}{% endfor -%}
{{ '<turn|>\\n' }}
{%- else -%}{%- set rest = messages -%}{%- endif -%}
{%- for message in rest -%}
{{ '<|turn>' + ('model' if message.role == 'assistant' else message.role) + '\\n' }}
{%- for call in message.tool_calls or [] %}{{ '<|tool_call>call:' + call.function.name + '{}<tool_call|>' }}{% endfor -%}
{%- if message.content is string -%}{{ message.content | trim }}
{%- else -%}
{%- for part in message.content or [] -%}
{%- if part.type == 'text' %}{{ part.text | trim }}
{%- elif part.type == 'audio' %}{{ '<|audio|>' }}
{%- else %}{{ '\\n\\n<|' + part.type + '|>\\n\\n' }}{% endif -%}
{%- endfor -%}
{%- endif -%}
{{ '<turn|>\\n' }}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|turn>model\\n' }}
{%- if not enable_thinking %}{{ '<|channel>thought\\n<channel|>' }}{% endif -%}
{%- endif -%}"""
