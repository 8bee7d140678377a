"""Reads the files in a `deploy/` folder, checks each against the schema of its kind, and prints them all as JSON.

    python3 manifests.py FOLDER KEDA
    python3 manifests.py FOLDER             (only reads and prints)

Compose files are checked by the Compose specification's schema, Kubernetes' kinds by Kubernetes' own (of the
oldest and the newest version that we say works), KEDA's by the definitions in its module, whose folder is KEDA.
A key that the schema does not know is a mistake, and so is one that is there twice, which YAML parsers let pass.
What is wrong goes to stderr, one line each, and the exit code is 1.
"""

import functools
import importlib.util
import json
import pathlib
import sys

import yaml

KUBERNETES_VERSIONS = ["1.30.0", "1.37.0"]

complaints = []


def complain(path, where, what):
    """One line: a schema's words may be many."""
    text = " ".join(str(what).split())
    complaints.append(f"{path}: {where}: {text[:400]}")


class Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):
    """YAML in which no key is there twice."""


def without_duplicates(loader, node):
    seen = set()
    for key, _ in node.value:
        if key.tag == "tag:yaml.org,2002:merge":
            continue
        if key.value in seen:
            raise yaml.constructor.ConstructorError(
                None, None, f"`{key.value}` is there twice", key.start_mark
            )
        seen.add(key.value)
    loader.flatten_mapping(node)
    return loader.construct_mapping(node, deep=True)


Loader.add_constructor(
    yaml.resolver.BaseResolver.DEFAULT_MAPPING_TAG, without_duplicates
)


def errors_of(schema, document):
    """As few and as near to the mistake as the schema can say."""
    import jsonschema

    validator = jsonschema.validators.validator_for(schema)(schema)
    for error in validator.iter_errors(document):
        nearest = jsonschema.exceptions.best_match([error])
        where = "/".join(str(part) for part in nearest.absolute_path)
        yield where, nearest.message


@functools.cache
def compose_schema():
    # The package brings the schema; its code is not needed.
    package = pathlib.Path(importlib.util.find_spec("check_jsonschema").origin).parent
    return json.loads((package / "builtin_schemas/vendor/compose-spec.json").read_text())


def check_compose(path, documents):
    schema = compose_schema()
    for document in documents:
        for where, what in errors_of(schema, document):
            complain(path, where, what)


def check_kubernetes(path, document):
    import kubernetes_validate

    for version in KUBERNETES_VERSIONS:
        try:
            kubernetes_validate.validate(document, version, strict=True)
        except kubernetes_validate.ValidationError as error:
            where = "/".join(str(part) for part in error.path)
            complain(path, where, f"{error.message} (Kubernetes {version})")
        except kubernetes_validate.SchemaNotFoundError as error:
            complain(path, document.get("kind"), error)


def closed(schema):
    """The same schema, in which objects have no keys but those it names."""
    if isinstance(schema, list):
        return [closed(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    schema = {key: closed(part) for key, part in schema.items()}
    named = isinstance(schema.get("properties"), dict) and schema.get("type") == "object"
    open_to_all = schema.get("x-kubernetes-preserve-unknown-fields")
    if named and not open_to_all and "additionalProperties" not in schema:
        schema["additionalProperties"] = False
    return schema


class Keda:
    """KEDA's kinds and what its scalers take, as its module has them."""

    def __init__(self, folder):
        self.kinds = {}
        for path in sorted((folder / "config/crd/bases").glob("keda.sh_*.yaml")):
            definition = yaml.load(path.read_text(), Loader)["spec"]
            for version in definition["versions"]:
                name = f"{definition['group']}/{version['name']}", definition["names"]["kind"]
                schema = closed(version["schema"]["openAPIV3Schema"])
                # Every object has more of it than its definition repeats.
                schema["properties"]["metadata"] = {"type": "object"}
                self.kinds[name] = schema
        scalers = json.loads((folder / "schema/generated/scalers-schema.json").read_text())
        self.scalers = {scaler["type"]: scaler["parameters"] for scaler in scalers["scalers"]}

    def check(self, path, document):
        kind = document["apiVersion"], document["kind"]
        if kind not in self.kinds:
            return complain(path, document["kind"], "KEDA has no such kind")
        for where, what in errors_of(self.kinds[kind], document):
            complain(path, where, what)
        for trigger in document.get("spec", {}).get("triggers", []):
            self.check_trigger(path, document["metadata"]["name"], trigger)

    def check_trigger(self, path, name, trigger):
        parameters = self.scalers.get(trigger.get("type"))
        if parameters is None:
            return complain(path, name, f"KEDA has no scaler `{trigger.get('type')}`")
        metadata = trigger.get("metadata", {})
        known = {parameter["name"]: parameter for parameter in parameters}
        for key, value in metadata.items():
            if key not in known:
                complain(path, name, f"the scaler `{trigger['type']}` does not take `{key}`")
                continue
            allowed = known[key].get("allowedValue")
            if allowed and value not in allowed:
                complain(path, name, f"`{key}` is `{value}`, not one of {allowed}")
        elsewhere = "authenticationRef" in trigger
        for parameter in parameters:
            given = parameter["name"] in metadata
            needed = not parameter.get("optional") and "default" not in parameter
            by_reference = parameter.get("triggerAuthenticationVariableReadable") and elsewhere
            if needed and not given and not by_reference:
                complain(path, name, f"the scaler `{trigger['type']}` needs `{parameter['name']}`")


def read(path, name):
    try:
        return list(yaml.load_all(path.read_text(), Loader))
    except yaml.YAMLError as error:
        complain(name, "YAML", error)
        return []


def check(name, documents, keda):
    if name.startswith("compose/"):
        check_compose(name, documents)
    elif name.startswith("kubernetes/"):
        for document in documents:
            group = str(document.get("apiVersion", "")).split("/")[0]
            if group.endswith("keda.sh"):
                keda().check(name, document)
            elif group != "kustomize.config.k8s.io":
                check_kubernetes(name, document)


def main(folder, keda=None):
    folder = pathlib.Path(folder)
    definitions = functools.cache(lambda: Keda(pathlib.Path(keda)))
    files = {}
    for path in sorted(folder.rglob("*.yaml")):
        name = path.relative_to(folder).as_posix()
        files[name] = read(path, name)
        if keda:
            check(name, files[name], definitions)
    json.dump(files, sys.stdout)
    for complaint in complaints:
        print(complaint, file=sys.stderr)
    return 1 if complaints else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
