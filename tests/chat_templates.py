"""Chat templates that render what the families' checkpoints publish.

The templates are written here. What they must render is what these publish: `chat_template.json` of llava-v1.6-mistral-7b-hf
and -vicuna-7b-hf, llava-onevision-qwen2-0.5b-ov-hf, Qwen2-VL-2B-Instruct, Qwen3.5-35B-A3B, gemma-3-4b-it and SmolVLM-Instruct,
and `chat_template.jinja` of GLM-4.1V-9B-Thinking, GLM-4.5V and PaddleOCR-VL, as quoted in public code; Gemma 4's, as llama.cpp
has it; transformers' own for SmolVLM; and, by what is in use for them elsewhere, InternVL, llava-v1.6-34b-hf,
llama3-llava-next-8b-hf, Idefics3 and Mistral's own; LFM2.5-VL-450M's, as a page that runs it quotes it. GLM-4.6V is held to
what GLM-4.5V renders: of its own no whole text is quoted, only that pictures, "/nothink" and <think></think> stand there alike;
and MiniCPM-V 4.6 to Qwen3.5's with <|image_pad|> alone for a picture, as what is quoted of it has these in common.
llava-1.5-7b-hf renders what llava-v1.6-vicuna-7b-hf does; Mistral-Small-3.1-24B-Instruct-2503, by what is quoted of it, has a
system prompt of its own that tells the date.
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
QWEN3_5 = _filled(
    """{%- set count = namespace(value=0) -%}
{%- set last = namespace(asked=-1) -%}
{%- macro words(message) -%}
{%- if message.content is string %}{{ message.content }}{% else %}@parts@{% endif -%}
{%- endmacro -%}
{%- if tools -%}{{ '<|im_start|>system\\n# Tools\\n\\nYou have access to the following functions:\\n\\n<tools>' }}
{%- for tool in tools %}{{ '\\n' + tool | tojson }}{% endfor -%}
{{ '\\n</tools>' + ('\\n\\n' + words(messages[0]) | trim if messages[0].role == 'system' else '') + '<|im_end|>\\n' }}
{%- elif messages[0].role == 'system' -%}{{ '<|im_start|>system\\n' + words(messages[0]) | trim + '<|im_end|>\\n' }}
{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{%- set last.asked = loop.index0 -%}{%- endif -%}
{%- endfor -%}
{%- if last.asked < 0 %}{{ raise_exception('no user') }}{% endif -%}
{%- set count.value = 0 -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '<|im_start|>user\\n' + words(message) | trim + '<|im_end|>\\n' }}
{%- elif message.role == 'assistant' -%}
{{ '<|im_start|>assistant\\n' + ('<think>\\n\\n</think>\\n\\n' if loop.index0 > last.asked else '') + words(message) | trim }}
{%- for call in message.tool_calls or [] -%}
{{ '<tool_call>\\n<function=' + call.function.name + '>\\n</function>\\n</tool_call>' }}{%- endfor -%}{{ '<|im_end|>\\n' }}
{%- elif message.role == 'tool' -%}
{%- if loop.index0 and messages[loop.index0 - 1].role != 'tool' %}{{ '<|im_start|>user' }}{% endif -%}
{{ '\\n<tool_response>\\n' + words(message) | trim + '\\n</tool_response>' }}
{%- if loop.last or messages[loop.index0 + 1].role != 'tool' %}{{ '<|im_end|>\\n' }}{% endif -%}
{%- elif message.role != 'system' or not loop.first -%}{{ raise_exception('roles') }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n<think>\\n' }}{% endif -%}""",
    parts=_NUMBERED,
)
MINICPM_V_4_6 = QWEN3_5.replace("<|vision_start|><|", "<|").replace("_pad|><|vision_end|>", "_pad|>")
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
GLM_PICTURES = {
    "image": "<|begin_of_image|><|image|><|end_of_image|>",
    "video": "<|begin_of_video|><|video|><|end_of_video|>",
}
GLM_4_1V = _filled(  # other roles' parts are printed as they are: they are meant to be strings
    """{{ '[gMASK]<sop>' }}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '<|user|>\\n' }}
{%- if message.content is string %}{{ message.content }}{% else %}@parts@{% endif -%}
{%- elif message.role in ('system', 'assistant') -%}{{ '<|' ~ message.role ~ '|>\\n' ~ message.content }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' }}{% endif -%}""",
    parts=_filled(IN_ORDER, **GLM_PICTURES),
)
GLM_4_5V = _filled(
    """{%- macro words(message) -%}
{%- if message.content is string %}{{ message.content }}{% else %}@parts@{% endif -%}
{%- endmacro -%}
{%- set silent = enable_thinking is defined and not enable_thinking -%}
{{ '[gMASK]<sop>' }}
{%- if tools -%}{{ '<|system|>\\n# Tools\\n\\nYou may call one or more functions.\\n<tools>\\n' }}
{%- for tool in tools %}{{ tool | tojson + '\\n' }}{% endfor -%}{{ '</tools>' }}{%- endif -%}
{%- for message in messages -%}
{%- if message.role == 'user' -%}
{{ '<|user|>\\n' + words(message) + ('/nothink' if silent and not words(message).endswith('/nothink') else '') }}
{%- elif message.role == 'assistant' -%}{{ '<|assistant|>\\n<think></think>' }}
{%- if words(message).strip() %}{{ '\\n' + words(message).strip() }}{% endif -%}
{%- for call in message.tool_calls or [] -%}{{ '\\n<tool_call>' + call.function.name + '\\n' }}
{%- for name, value in call.function.arguments.items() -%}
{{ '<arg_key>' ~ name ~ '</arg_key>\\n<arg_value>' ~ value ~ '</arg_value>\\n' }}{%- endfor -%}{{ '</tool_call>' }}
{%- endfor -%}
{%- elif message.role == 'tool' -%}
{%- if loop.index0 and messages[loop.index0 - 1].role != 'tool' %}{{ '<|observation|>' }}{% endif -%}
{{ '\\n<tool_response>\\n' + words(message) + '\\n</tool_response>' }}
{%- elif message.role == 'system' -%}{{ '<|system|>\\n' + words(message) }}{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|assistant|>\\n' + ('<think></think>\\n' if silent else '') }}{% endif -%}""",
    parts=_filled(IN_ORDER, **GLM_PICTURES),
)
PADDLEOCR_VL = _filled(
    """{{ '<|begin_of_sentence|>' }}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ 'User: ' }}@pictures@@texts@{{ '\\n' }}
{%- elif message.role == 'assistant' -%}{{ 'Assistant: ' }}@texts@{{ '</s>' }}
{%- elif message.role == 'system' -%}@lines@{%- endif -%}
{%- endfor -%}
{%- if add_generation_prompt %}{{ 'Assistant: ' }}{% endif -%}""",
    pictures=_filled(PICTURES, image="<|IMAGE_START|><|IMAGE_PLACEHOLDER|><|IMAGE_END|>"),
    texts=_filled(TEXTS, text="part.text"),
    lines=_filled(TEXTS, text="part.text + '\\n'"),
)
MISTRAL3 = _filled(
    """{%- set guide = 'You are Mistral Small 3.1.\\n\\nThe current date is ' + strftime_now('%Y-%m-%d') + '.' -%}
{%- macro words(message) -%}
{%- if message.content is string %}{{ message.content }}{% else %}@parts@{% endif -%}
{%- endmacro -%}
{%- if messages[0].role == 'system' -%}{%- set guide = words(messages[0]) -%}{%- set messages = messages[1:] -%}{%- endif -%}
{{ bos_token }}{{ '[SYSTEM_PROMPT]' + guide + '[/SYSTEM_PROMPT]' }}
{%- for message in messages -%}
{%- if message.role == 'user' -%}{{ '[INST]' + words(message) + '[/INST]' }}
{%- elif message.role == 'system' -%}{{ '[SYSTEM_PROMPT]' + words(message) + '[/SYSTEM_PROMPT]' }}
{%- elif message.role == 'assistant' -%}{{ words(message) + '</s>' }}
{%- else -%}{{ raise_exception('roles') }}{%- endif -%}
{%- endfor -%}""",
    parts=_filled(IN_ORDER, image="[IMG]", video="[IMG]"),
)
LFM2_VL = _filled(
    """{{ bos_token }}
{%- macro words(message) -%}
{%- if message.content is string %}{{ message.content }}{% else %}@parts@{% endif -%}
{%- endmacro -%}
{%- if messages[0].role == 'system' -%}
{%- if words(messages[0]) %}{{ '<|im_start|>system\\n' + words(messages[0]) + '<|im_end|>\\n' }}{% endif -%}
{%- set messages = messages[1:] -%}
{%- endif -%}
{%- for message in messages -%}{{ '<|im_start|>' + message.role + '\\n' + words(message) + '<|im_end|>\\n' }}{%- endfor -%}
{%- if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif -%}""",
    parts=_filled(IN_ORDER, image="<image>", video="<image>"),
)
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
