# Builds heddle_cuda.node with node-gyp and nvcc; run by `npm run build:cuda` (install/cuda.mjs), which says where the
# toolkit is. `npm install` never comes here: package.json has an install script of its own.
{
  'variables': {
    'cuda_nvcc%': 'nvcc',
    'cuda_include%': '',
    'cuda_library_folder%': '',
    # The libraries by file, for Python's wheels have no `libcublasLt.so`.
    'cuda_libraries%': [],
    'cuda_architectures%': [
      '-gencode=arch=compute_80,code=sm_80',
      '-gencode=arch=compute_86,code=sm_86',
      '-gencode=arch=compute_89,code=sm_89',
      '-gencode=arch=compute_90,code=sm_90',
      # For GPUs that are newer than all of these.
      '-gencode=arch=compute_90,code=compute_90',
    ],
  },
  'targets': [
    {
      'target_name': 'heddle_cuda',
      'sources': [
        'cuda/addon.cpp',
        'cpp/core/backend_status.cpp',
        'cpp/core/dtype.cpp',
        'cpp/core/shape.cpp',
        'cpp/core/status.cpp',
        'cpp/io/encoding.cpp',
        'cpp/kernels/micro_ops.cpp',
        'cpp/program/decoded_instruction.cpp',
        'cpp/program/kernel.cpp',
        'cpp/structured/chain.cpp',
        '<!@(node install/cuda.mjs --sources)',
      ],
      'include_dirs': [
        '.',
        'cpp',
        '<!(node -p "require(\'node-addon-api\').include_dir")',
        '<(cuda_include)',
      ],
      'defines': [
        'HEDDLE_CUDA_TOOLKIT',
        'NAPI_VERSION=9',
        'NAPI_CPP_EXCEPTIONS',
        'NODE_ADDON_API_DISABLE_DEPRECATED',
      ],
      'cflags_cc!': ['-fno-exceptions', '-fno-rtti', '-std=gnu++17', '-std=gnu++20'],
      'cflags_cc': ['-std=c++20', '-O2', '-Wall', '-Wextra', '-Werror', '-fvisibility=hidden', '-Wno-unused-parameter'],
      'rules': [
        {
          'rule_name': 'nvcc',
          'extension': 'cu',
          'inputs': ['<!@(node install/cuda.mjs --headers)'],
          'outputs': ['<(INTERMEDIATE_DIR)/<(RULE_INPUT_DIRNAME)/<(RULE_INPUT_ROOT).o'],
          'process_outputs_as_sources': 1,
          'message': 'nvcc <(RULE_INPUT_PATH)',
          'action': [
            'node',
            'install/cuda.mjs',
            '--compile',
            '<(cuda_nvcc)',
            '<!@(node install/cuda.mjs --flags)',
            '<@(cuda_architectures)',
            '-I.',
            '-Icpp',
            '-c',
            '<(RULE_INPUT_PATH)',
            '-o',
            '<@(_outputs)',
          ],
        },
      ],
      'libraries': ['<@(cuda_libraries)', '-lrt', '-ldl', '-lpthread'],
      'ldflags': ['-Wl,-rpath,<(cuda_library_folder)', '-Wl,-rpath,$ORIGIN', '-Wl,--no-undefined-version'],
    },
  ],
}
