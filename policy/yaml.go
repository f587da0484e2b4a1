package policy

import (
	"errors"

	"accessbroker.internal/internal/strictyaml"
)

// yamlProblem converts an error of a YAML file, with its position if it has one.
func yamlProblem(src *source, err error) Problem {
	p := Problem{File: src.name, Text: err.Error()}
	var at *strictyaml.Error
	if errors.As(err, &at) {
		p.Line, p.Column, p.Text = at.Line, at.Column, at.Message()
	}
	return p
}
