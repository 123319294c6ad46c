"""Shows hyperparameters in the API documentation with the comment that stands beside each in the source."""

import re

import griffe


class FieldComments(griffe.Extension):
    """Takes the comment of a config's field for its docstring, as `rlcore train ALGO --help` does."""

    def on_attribute_instance(self, *, attr: griffe.Attribute, **_: object) -> None:
        config = attr.parent
        if (
            attr.docstring is None
            and config.is_class
            and config.name.endswith("Config")
            and attr.annotation is not None
        ):
            comment = re.search(r"# (.+)$", attr.lines[0]) if attr.lines else None
            if comment:
                attr.docstring = griffe.Docstring(comment[1], parent=attr)
