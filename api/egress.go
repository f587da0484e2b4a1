package api

// Egress are the rules under which the credential of an entitlement may be used in calls
// that an edge makes for its caller. Without rules, an edge makes no calls.
type Egress struct {
	Inject      Injection    `json:"inject"`
	Allow       []EgressRule `json:"allow"`
	Record      bool         `json:"record,omitempty"` // each call is a record before it is made
	MaxRequest  int64        `json:"max_request"`      // bytes of a body
	MaxAnswer   int64        `json:"max_answer"`       // bytes of a body, after decoding
	Timeout     Duration     `json:"timeout"`          // of a call, including all of its answer
	IdleTimeout Duration     `json:"idle_timeout"`     // without a byte from the other side
}

// Forms of injection.
const (
	InjectBearer = "bearer"    // Authorization: Bearer (RFC 6750)
	InjectBasic  = "basic"     // Authorization: Basic (RFC 7617)
	InjectHeader = "header"    // a header of its own
	InjectSigV4  = "aws-sigv4" // a signature of AWS, version 4
)

// An Injection is the form in which a call carries the credential.
type Injection struct {
	As       string `json:"as"`                 // bearer, basic, header, aws-sigv4
	Field    string `json:"field,omitempty"`    // bearer, header: of the secret; absent: token
	Username string `json:"username,omitempty"` // basic: a field of the secret; absent: username
	Password string `json:"password,omitempty"` // basic: a field of the secret; absent: password
	Name     string `json:"name,omitempty"`     // header: its name
	Prefix   string `json:"prefix,omitempty"`   // header: what its value starts with
	Service  string `json:"service,omitempty"`  // aws-sigv4
	Region   string `json:"region,omitempty"`   // aws-sigv4
}

// An EgressRule allows calls. A call must match one rule in all of its parts.
type EgressRule struct {
	Hosts     []string `json:"hosts"`               // api.github.com, *.acme.test, host:8443, http://host:8080
	Methods   []string `json:"methods"`             // GET, HEAD
	Paths     []string `json:"paths"`               // "*" matches within a segment, "**" at the end the rest
	Query     []string `json:"query,omitempty"`     // the only parameters of the query; absent: any that carries no credential
	Headers   []string `json:"headers,omitempty"`   // of the caller, in addition to a few that are always allowed
	WebSocket bool     `json:"websocket,omitempty"` // GET may become a WebSocket
	Addresses []string `json:"addresses,omitempty"` // networks that are not public and that the host may resolve to
}
