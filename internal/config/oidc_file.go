package config

import (
	"fmt"
	"regexp"
	"strconv"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"

	"accessbroker.internal/attest/mapping"
	"accessbroker.internal/internal/strictyaml"
)

// workloadIssuerFile is an issuer of OIDC tokens of workloads.
type workloadIssuerFile struct {
	Issuer      string   `yaml:"issuer"`
	Audience    string   `yaml:"audience"`
	TrustDomain string   `yaml:"trust_domain"`
	Shared      bool     `yaml:"shared_trust_domain"` // workloads of the trust domain also have SVIDs
	Algorithms  []string `yaml:"algorithms"`
	MaxLifetime duration `yaml:"max_lifetime"`
	OneTime     *bool    `yaml:"one_time"`
	JWKSURI     string   `yaml:"jwks_uri"`
	JWKSFile    string   `yaml:"jwks_file"`
	CAFile      string   `yaml:"ca_file"`
	TokenFile   string   `yaml:"bearer_token_file"`

	Rules []mappingRuleFile `yaml:"rules"`
}

type mappingRuleFile struct {
	Claims   claimsFile `yaml:"claims"`
	SPIFFEID string     `yaml:"spiffe_id"`
}

// claimsFile has what claims must be. It decodes itself, because the kind of a scalar
// matters: "true" is a text, and true is not.
type claimsFile map[string]mapping.Want

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (f *claimsFile) UnmarshalYAML(node ast.Node) (err error) {
	*f, err = readClaims(node)
	return err
}

func wrongClaim(node ast.Node, format string, args ...any) error {
	return &yaml.SyntaxError{Message: fmt.Sprintf(format, args...), Token: node.GetToken()}
}

func readClaims(node ast.Node) (map[string]mapping.Want, error) {
	var pairs []*ast.MappingValueNode
	switch n := node.(type) {
	case *ast.MappingNode:
		pairs = n.Values
	case *ast.MappingValueNode:
		pairs = []*ast.MappingValueNode{n}
	default:
		return nil, wrongClaim(node, "write the required claims by name, such as {repository_id: \"74\", ref: refs/heads/main}")
	}
	claims := map[string]mapping.Want{}
	for _, pair := range pairs {
		want, err := readWant(pair.Value)
		if err != nil {
			return nil, err
		}
		claims[pair.Key.GetToken().Value] = want
	}
	return claims, nil
}

// readWant reads what one claim must be: a value, one of a list, or an object.
func readWant(node ast.Node) (w mapping.Want, err error) {
	if text, ok := strictyaml.Joined(node); ok {
		return mapping.Want{Values: []mapping.Value{mapping.Text(text)}}, nil
	}
	switch n := node.(type) {
	case *ast.MappingNode, *ast.MappingValueNode:
		w.Members, err = readClaims(n)
		return w, err
	case *ast.SequenceNode:
		for _, one := range n.Values {
			value, err := readValue(one)
			if err != nil {
				return w, err
			}
			w.Values = append(w.Values, value)
		}
		return w, nil
	}
	value, err := readValue(node)
	return mapping.Want{Values: []mapping.Value{value}}, err
}

var wholeNumber = regexp.MustCompile(`^(0|-?[1-9][0-9]{0,14})$`)

func readValue(node ast.Node) (mapping.Value, error) {
	if text, ok := strictyaml.Joined(node); ok {
		return mapping.Text(text), nil
	}
	written := node.GetToken().Value
	switch n := node.(type) {
	case *ast.StringNode:
		return mapping.Text(n.Value), nil
	case *ast.LiteralNode:
		return mapping.Text(n.Value.Value), nil
	case *ast.BoolNode:
		if written == "true" || written == "false" {
			return mapping.Truth(n.Value), nil
		}
	case *ast.IntegerNode:
		if wholeNumber.MatchString(written) {
			number, err := strconv.ParseInt(written, 10, 64)
			return mapping.Whole(number), err
		}
	}
	return mapping.Value{}, wrongClaim(node, "a claim is compared with a text, true, false or a whole number: quote the value if the claim is a text, as those of GitHub and GitLab are")
}
