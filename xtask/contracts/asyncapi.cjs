// Reads AsyncAPI documents with the specification's own parser, and says what it says about them.
//
//     node asyncapi.cjs FILE...
//
// Each finding is a line of JSON on stdout: the file, how severe it is (`error`, `warning`, `info` or `hint`), the
// parser's code and words, where in the document, and in which line of the file. What the rules of good style
// say (the parser's "governance" rules) is among it. The exit code is 1 if one is an error.

const { readFileSync } = require('node:fs');
const { Parser } = require('@asyncapi/parser');
const { AvroSchemaParser } = require('@asyncapi/avro-schema-parser');
const { ProtoBuffSchemaParser } = require('@asyncapi/protobuf-schema-parser');

const parser = new Parser();
parser.registerSchemaParser(AvroSchemaParser());
parser.registerSchemaParser(ProtoBuffSchemaParser());
const SEVERITIES = ['error', 'warning', 'info', 'hint'];

async function findings(file) {
  const { diagnostics } = await parser.parse(readFileSync(file, 'utf8'), { source: file });
  return diagnostics.map(({ severity, code, message, path, range }) => ({
    file,
    severity: SEVERITIES[severity],
    code,
    message,
    path: path.join('/'),
    line: range.start.line + 1,
  }));
}

async function main(files) {
  if (files.length === 0) throw new Error('name at least one file: node asyncapi.cjs FILE...');
  let isRefused = false;
  for (const file of files) {
    for (const finding of await findings(file)) {
      console.log(JSON.stringify(finding));
      isRefused ||= finding.severity === 'error';
    }
  }
  process.exitCode = isRefused ? 1 : 0;
}

// Until everything has been read.
process.exitCode = 2;
main(process.argv.slice(2)).catch((error) => {
  console.error(error);
  process.exit(2);
});
