"""Shows hyperparameters in the API documentation by their plain types, with the comment that stands beside each in the
source, and examples in docstrings as code."""

import ast
import re
from pathlib import Path

import griffe

SOURCE = Path(__file__).parent.parent / "rlcore" / "agents" / "config.py"
ALIASES = {
    target.id: statement.value
    for statement in ast.parse(SOURCE.read_text()).body
    if isinstance(statement, ast.Assign)
    for target in statement.targets
}


class Plain(ast.NodeTransformer):
    """Makes `Count | None` to `int | None`: puts what they stand for in place of names, and leaves out ranges."""

    def visit_Name(self, node: ast.Name) -> ast.expr:
        return self.visit(ALIASES[node.id]) if node.id in ALIASES and node.id != "T" else node

    def visit_Subscript(self, node: ast.Subscript) -> ast.expr:
        if ast.unparse(node.value) == "Annotated":
            return self.visit(node.slice.elts[0])
        return self.visit(node.slice) if ast.unparse(node.value) == "Apart" else self.generic_visit(node)


class FieldComments(griffe.Extension):
    """Takes the comment of a config's field for its docstring, as `rlcore train ALGO --help-all` does."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: object) -> None:
        config = attr.parent
        if not (config.is_class and config.name.endswith("Config") and attr.annotation is not None):
            return
        plain = Plain().visit(ast.parse(str(attr.annotation), mode="eval").body)
        attr.annotation = griffe.safe_get_annotation(plain, parent=config)
        comment = re.search(r"\s# (.+)$", "\n".join(attr.lines), re.MULTILINE)
        if comment and attr.docstring is None:
            attr.docstring = griffe.Docstring(comment[1], parent=attr)


class Examples(griffe.Extension):
    """Has what stands behind `>>>` in docstrings, and what it gives, come out as code and not as quotations; and where
    one entry stands for several arguments, shows their type."""

    def on_instance(self, *, obj: griffe.Object, **_: object) -> None:
        if obj.docstring is not None and ">>>" in obj.docstring.value:
            obj.docstring.value = fenced_examples(obj.docstring.value)

    def on_function(self, *, func: griffe.Function, **_: object) -> None:
        show_types(func.docstring, func)

    def on_class_members(self, *, cls: griffe.Class, **_: object) -> None:
        maker = cls.members.get("__init__")
        if isinstance(maker, griffe.Function):
            show_types(cls.docstring, maker)


def show_types(docstring: griffe.Docstring | None, function: griffe.Function) -> None:
    """Add the type that the first one has to entries such as `rewards, values: ...`."""

    def typed(entry: re.Match[str]) -> str:
        name = entry[1].split(",")[0]
        annotation = function.parameters[name].annotation if name in function.parameters else None
        return entry[0] if annotation is None else f"    {entry[1]} ({annotation}):"

    if docstring is not None:
        docstring.value = re.sub(r"^    (\w+(?:, \w+)+):", typed, docstring.value, flags=re.MULTILINE)


def fenced_examples(text: str) -> str:
    """The text with each block of lines from a `>>>` to the next blank line between fences."""
    return re.sub(r"^>>> .*(?:\n.+)*", lambda block: f"```pycon\n{block[0]}\n```", text, flags=re.MULTILINE)
