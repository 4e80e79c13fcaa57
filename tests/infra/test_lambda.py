"""The SAM template: what we deploy is valid, and what is wrong is refused by name."""

import pytest
import sam

FUNCTION = ("Resources", "Predict", "Properties")
URL = (*FUNCTION, "FunctionUrlConfig")


def template_with(path: tuple, value: object) -> dict:
    template = place = sam.load()
    *parents, last = path
    for key in parents:
        place = place[key]
    place[last] = value
    return template


def test_template_is_valid():
    assert sam.mistakes(sam.load()) == []


@pytest.mark.parametrize(
    ("path", "value"),
    [
        ((*FUNCTION, "Architectures"), ["arm65"]),
        ((*FUNCTION, "EphemeralStorage"), {"Size": 99999}),
        ((*FUNCTION, "Layers"), [{"Ref": "Weights"}]),
        ((*FUNCTION, "LoggingConfig"), {"LogFormat": "XML"}),
        ((*FUNCTION, "MemorySize"), 64),
        ((*FUNCTION, "Runtime"), "provided.al2025"),
        ((*FUNCTION, "Timeout"), 901),
        ((*FUNCTION, "TimeOut"), 35),
        ((*URL, "AuthType"), "ANYONE"),
        ((*URL, "InvokeMode"), "STREAMY"),
        (("Parameters", "Architecture", "Default"), "arm65"),
    ],
    ids=lambda value: value[-1] if isinstance(value, tuple) else str(value),
)
def test_wrong_value_is_refused_by_name(path, value):
    mistakes = sam.mistakes(template_with(path, value))
    assert any(path[-1] in mistake for mistake in mistakes), mistakes


def test_url_is_closed_unless_the_parameter_opens_it():
    template = sam.translate(sam.load())
    assert template["Parameters"]["UrlAuth"]["Default"] == "AWS_IAM"
    assert template["Conditions"]["Public"] == {"Fn::Equals": [{"Ref": "UrlAuth"}, "NONE"]}
    opened = {
        resource["Properties"]["Action"]: resource.get("Condition")
        for resource in template["Resources"].values()
        if resource["Type"] == "AWS::Lambda::Permission"
    }
    # A public URL needs both.
    assert opened == {
        "lambda:InvokeFunctionUrl": "Public",
        "lambda:InvokeFunction": "Public",
    }
