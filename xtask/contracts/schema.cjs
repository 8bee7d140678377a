// Checks values by a JSON Schema of the draft 2020-12, and the schema by the draft.
//
//     node schema.cjs SCHEMA VALUE...
//
// All are files. Each finding is a line of JSON on stdout: the file, where in it, and what is wrong. The exit code is 1
// if there is one. A keyword or a format that the validator does not know is a mistake of the schema.

const { readFileSync } = require('node:fs');
const { default: Ajv } = require('ajv/dist/2020');
const { default: addFormats } = require('ajv-formats');

const read = (file) => JSON.parse(readFileSync(file, 'utf8'));

function main([schema, ...values]) {
  if (!schema) throw new Error('name a schema: node schema.cjs SCHEMA VALUE...');
  // Not its rules of style, which the draft does not have.
  const ajv = new Ajv({ strict: true, strictTypes: false, strictTuples: false, allErrors: true });
  addFormats(ajv);
  const found = [];
  const document = read(schema);
  let validate;
  try {
    validate = ajv.compile(document);
  } catch (error) {
    found.push({ file: schema, path: '', message: error.message });
  }
  for (const file of validate ? values : []) {
    if (validate(read(file))) continue;
    for (const { instancePath: path, message, params } of validate.errors) {
      found.push({ file, path, message: `${message} ${JSON.stringify(params)}` });
    }
  }
  found.forEach((finding) => console.log(JSON.stringify(finding)));
  process.exitCode = found.length > 0 ? 1 : 0;
}

try {
  main(process.argv.slice(2));
} catch (error) {
  console.error(error);
  process.exitCode = 2;
}
