package policy

const scenarioSuffix = "_test.yaml"
