package config

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
	"github.com/goccy/go-yaml/parser"
)

// The operator's file, as it is written. What it means, and what is wrong with
// it, is worked out in settings.go.
type file struct {
	Server       serverFile                 `yaml:"server"`
	Attest       attestFile                 `yaml:"attest"`
	Store        plain                      `yaml:"store"`
	Policies     string                     `yaml:"policies"`
	Issuers      map[string]issuerFile      `yaml:"issuers"`
	Entitlements map[string]entitlementFile `yaml:"entitlements"`
	Notify       *notifyFile                `yaml:"notify"`
}

type serverFile struct {
	ExternalURL plain          `yaml:"external_url"`
	Listeners   []listenerFile `yaml:"listeners"`
	Listen      string         `yaml:"listen"` // short for one listener that serves everything
	TLS         *tlsFile       `yaml:"tls"`
	ClientCerts string         `yaml:"client_certs"`
	Metrics     string         `yaml:"metrics"`
	AdminSocket string         `yaml:"admin_socket"`
	SealKeys    []sealKeyFile  `yaml:"seal_keys"`
	Signing     signingFile    `yaml:"signing"`
	Admission   admissionFile  `yaml:"admission"`
	Checkpoint  string         `yaml:"checkpoint_file"`
	Log         logFile        `yaml:"log"`
	Sessions    sessionsFile   `yaml:"sessions"`
	TicketURL   plain          `yaml:"ticket_url"`
}

type listenerFile struct {
	Listen      string   `yaml:"listen"`
	TLS         *tlsFile `yaml:"tls"`
	ClientCerts string   `yaml:"client_certs"`
	Serve       []string `yaml:"serve"`
}

type tlsFile struct {
	SVID bool   `yaml:"svid"`
	Cert string `yaml:"cert"`
	Key  string `yaml:"key"`
}

type sealKeyFile struct {
	File string `yaml:"file"`
}

type signingFile struct {
	Algorithm    string   `yaml:"algorithm"`
	RotateEvery  duration `yaml:"rotate_every"`
	PublishAhead duration `yaml:"publish_ahead"`
}

type admissionFile struct {
	PerSecond float64 `yaml:"per_second"`
	Pending   int     `yaml:"pending"`
}

type logFile struct {
	Format string `yaml:"format"`
	Level  string `yaml:"level"`
}

type attestFile struct {
	TrustDomain  string            `yaml:"trust_domain"`
	TrustDomains []string          `yaml:"trust_domains"`
	Audiences    []plain           `yaml:"audiences"`
	WorkloadAPI  plain             `yaml:"workload_api"`
	Bundles      map[string]string `yaml:"bundles"`
	Workloads    []markFile        `yaml:"workloads"`

	People map[string]personFile `yaml:"people"`
}

type markFile struct {
	Under       plain    `yaml:"under"`
	Kind        string   `yaml:"kind"`
	Accountable []string `yaml:"accountable"`
	Team        string   `yaml:"team"`
}

type issuerFile struct {
	Token   *tokenFile `yaml:"token"`
	Vault   *vaultFile `yaml:"vault"`
	AWS     *awsFile   `yaml:"aws"`
	Retired bool       `yaml:"retired"` // makes nothing more; ends what it made
}

type tokenFile struct {
	Audience        plain   `yaml:"audience"`
	ResourceServers []plain `yaml:"resource_servers"`
}

type vaultFile struct {
	Address   plain         `yaml:"address"`
	Namespace string        `yaml:"namespace"`
	CAFile    string        `yaml:"ca_file"`
	TokenRole string        `yaml:"token_role"`
	Auth      vaultAuthFile `yaml:"auth"`
}

type vaultAuthFile struct {
	JWT       *vaultLoginFile `yaml:"jwt"`
	Cert      *vaultLoginFile `yaml:"cert"`
	TokenFile string          `yaml:"token_file"`
	Agent     bool            `yaml:"agent"`
}

type vaultLoginFile struct {
	Role     string `yaml:"role"`
	Mount    string `yaml:"mount"`
	Audience plain  `yaml:"audience"` // of the JWT-SVID
}

type awsFile struct {
	Region   string      `yaml:"region"`
	Endpoint plain       `yaml:"endpoint"` // of an STS that is not AWS's own
	CAFile   string      `yaml:"ca_file"`
	Auth     awsAuthFile `yaml:"auth"`
	Revoker  plain       `yaml:"revoker_role_arn"`
}

type awsAuthFile struct {
	WebIdentity *webIdentityFile `yaml:"web_identity"`
	AssumeRole  *assumeRoleFile  `yaml:"assume_role"`
}

type webIdentityFile struct {
	Audience plain `yaml:"audience"`
}

type assumeRoleFile struct {
	CredentialsFile string `yaml:"credentials_file"`
	Profile         string `yaml:"profile"`
}

// awsSpecFile is what an entitlement says to AWS; what it allows stands with
// its scopes.
type awsSpecFile struct {
	RoleARN         plain   `yaml:"role_arn"`
	FullRole        bool    `yaml:"full_role"`
	ManagedPolicies []plain `yaml:"managed_policies"`
	ExternalID      plain   `yaml:"external_id"`
	Chain           bool    `yaml:"chain"`
	RevokeSessions  string  `yaml:"revoke_sessions"`
}

// vaultSpecFile is what an entitlement says to a Vault.
type vaultSpecFile struct {
	Path       string           `yaml:"path"`
	Data       map[string]plain `yaml:"data"`
	Policies   []string         `yaml:"policies"`
	Type       string           `yaml:"type"`
	Wrap       bool             `yaml:"wrap"`
	Ephemeral  *bool            `yaml:"ephemeral"`
	Revocation string           `yaml:"revocation"`
}

// scopesFile are names alone, or names with what each of them means and adds.
type scopesFile struct {
	names []string
	adds  map[string]scopeFile
}

type scopeFile struct {
	Description string   `yaml:"description"`
	Policies    []string `yaml:"policies"` // of the token, at a Vault
	Actions     []plain  `yaml:"actions"`  // of the session, at AWS
	Resources   []plain  `yaml:"resources"`
}

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (f *scopesFile) UnmarshalYAML(node ast.Node) error {
	if _, isList := node.(*ast.SequenceNode); isList {
		var list []plain
		if err := yaml.NodeToValue(node, &list, yaml.Strict()); err != nil {
			return err
		}
		f.names = toStrings(list)
		return nil
	}
	if err := yaml.NodeToValue(node, &f.adds, yaml.Strict()); err != nil {
		return err
	}
	f.names = slices.Sorted(maps.Keys(f.adds))
	return nil
}

type entitlementFile struct {
	Issuer        string                   `yaml:"issuer"`
	Description   string                   `yaml:"description"`
	Scopes        scopesFile               `yaml:"scopes"`
	DefaultScopes []plain                  `yaml:"default_scopes"`
	DefaultTTL    duration                 `yaml:"default_ttl"`
	MaxTTL        duration                 `yaml:"max_ttl"`
	CollectWithin duration                 `yaml:"collect_within"`
	Owner         string                   `yaml:"owner"`
	System        string                   `yaml:"system"`
	Labels        map[string]string        `yaml:"labels"`
	Parameters    map[string]parameterFile `yaml:"parameters"`
	Binding       string                   `yaml:"binding"`
	Vault         *vaultSpecFile           `yaml:"vault"`
	AWS           *awsSpecFile             `yaml:"aws"`
}

type parameterFile struct {
	Pattern     string `yaml:"pattern"`
	MaxLength   int    `yaml:"max_length"`
	Lines       bool   `yaml:"lines"` // may hold line breaks
	Required    bool   `yaml:"required"`
	Description string `yaml:"description"`
}

// A document is the file with its text, so that every error can say where.
type document struct {
	path string
	root ast.Node
	file file
	errs []error  // of what could not be read
	lost []string // the keys of that
}

const maxConfig = 4 << 20

func readConfig(path string) (*document, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading the operator's file: %w", err)
	}
	return parseConfig(path, text)
}

func parseConfig(path string, text []byte) (*document, error) {
	d := &document{path: path}
	if len(text) > maxConfig {
		return nil, fmt.Errorf("%s: larger than %d bytes", path, maxConfig)
	}
	tree, err := parser.ParseBytes(text, 0)
	if err != nil {
		return nil, d.yamlError(err)
	}
	if len(tree.Docs) != 1 || tree.Docs[0].Body == nil {
		return nil, fmt.Errorf("%s: it must be one YAML document", path)
	}
	d.root = tree.Docs[0].Body
	d.read()
	return d, nil
}

// yamlError gives the library's error the form of ours, without the names of
// Go types.
func (d *document) yamlError(err error) error {
	var at yaml.Error
	if !errors.As(err, &at) || at.GetToken() == nil {
		return fmt.Errorf("%s: %w", d.path, err)
	}
	text := at.GetMessage()
	if strings.Contains(text, "Go struct field") || strings.Contains(text, "Go value") || strings.Contains(text, " of type ") {
		text = "this key takes another kind of value: see docs/operator.md"
	}
	text = strings.Replace(text, "unknown field", "unknown key", 1)
	position := at.GetToken().Position
	return fmt.Errorf("%s:%d:%d: %s", d.path, position.Line, position.Column, text)
}

// errorf makes an error about a key, "entitlements/reports/issuer", with its
// place in the file: that of the key, or of the nearest above it that is there.
func (d *document) errorf(key, format string, args ...any) error {
	line, column := 1, 1
	node := d.root
	for _, name := range strings.Split(key, "/") {
		next, at := child(node, name)
		if at == nil {
			break
		}
		node, line, column = next, at.line, at.column
	}
	return fmt.Errorf("%s:%d:%d: %s: %s", d.path, line, column, strings.ReplaceAll(key, "/", "."), fmt.Sprintf(format, args...))
}

type place struct{ line, column int }

// child finds what stands under a key or index, and where.
func child(node ast.Node, name string) (ast.Node, *place) {
	switch n := node.(type) {
	case *ast.MappingNode:
		for _, v := range n.Values {
			if next, at := child(v, name); at != nil {
				return next, at
			}
		}
	case *ast.MappingValueNode:
		if t := n.Key.GetToken(); t.Value == name {
			return n.Value, &place{t.Position.Line, t.Position.Column}
		}
	case *ast.SequenceNode:
		if i, err := strconv.Atoi(name); err == nil && i < len(n.Values) {
			t := n.Values[i].GetToken()
			return n.Values[i], &place{t.Position.Line, t.Position.Column}
		}
	}
	return nil, nil
}

// duration is a Go duration string, "15m".
type duration time.Duration

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (d *duration) UnmarshalYAML(node ast.Node) error {
	parsed, err := time.ParseDuration(node.GetToken().Value)
	if err != nil || parsed <= 0 || parsed%time.Second != 0 {
		return &yaml.SyntaxError{Message: `a duration is a positive number of whole seconds, such as "90s", "15m" or "1h30m"`, Token: node.GetToken()}
	}
	*d = duration(parsed)
	return nil
}

// plain is a string that may hold a colon. Within {…}, the YAML library takes
// [tickets:read] for a list of a mapping, although no space follows the colon
// (YAML 1.2.2, section 7.3.3; goccy/go-yaml#832); this puts it together again.
type plain string

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (p *plain) UnmarshalYAML(node ast.Node) error {
	text, ok := joined(node)
	if !ok {
		return yaml.NodeToValue(node, (*string)(p))
	}
	*p = plain(text)
	return nil
}

// joined gives the text of a scalar that was torn apart at its colons.
func joined(node ast.Node) (string, bool) {
	pair, ok := node.(*ast.MappingValueNode)
	if m, isMapping := node.(*ast.MappingNode); isMapping && len(m.Values) == 1 {
		pair, ok = m.Values[0], true
	}
	if !ok {
		return "", false
	}
	key, value := pair.Key.GetToken(), pair.Value.GetToken()
	rest, torn := joined(pair.Value)
	if !torn {
		rest = value.Value
	} else if p, isPair := pair.Value.(*ast.MappingValueNode); isPair {
		value = p.Key.GetToken()
	}
	if value.Position.Line != key.Position.Line || value.Position.Column != key.Position.Column+len(key.Value)+len(":") {
		return "", false // a mapping indeed: the library refuses it
	}
	return key.Value + ":" + rest, true
}

func toStrings(list []plain) []string {
	out := make([]string, len(list))
	for i, s := range list {
		out[i] = string(s)
	}
	return out
}
