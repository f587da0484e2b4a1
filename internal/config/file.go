package config

import (
	"maps"
	"slices"

	"github.com/goccy/go-yaml"
	"github.com/goccy/go-yaml/ast"
)

// file is the operator's file as written. The checker turns it into a Config.
type file struct {
	Server       serverFile                 `yaml:"server"`
	Attest       attestFile                 `yaml:"attest"`
	Store        string                     `yaml:"store"`
	Policies     string                     `yaml:"policies"`
	Issuers      map[string]issuerFile      `yaml:"issuers"`
	Entitlements map[string]entitlementFile `yaml:"entitlements"`
	Notify       *notifyFile                `yaml:"notify"`
	People       peopleFile                 `yaml:"people"`
	Signals      map[string]transmitterFile `yaml:"signals"`
	Tickets      map[string]trackerFile     `yaml:"tickets"`
	SCIM         map[string]scimFile        `yaml:"scim"`
	Retention    retentionFile              `yaml:"retention"`
	Replicas     replicasFile               `yaml:"replicas"`
}

// peopleFile links the accounts that one person has at several providers.
type peopleFile struct {
	Aliases [][]string `yaml:"aliases"` // each list has the accounts of one person, the main one first
}

type serverFile struct {
	ExternalURL string         `yaml:"external_url"`
	Hosts       []string       `yaml:"hosts"`
	Listeners   []listenerFile `yaml:"listeners"`
	Listen      string         `yaml:"listen"` // with tls and client_certs: one listener that serves everything
	TLS         *tlsFile       `yaml:"tls"`
	ClientCerts string         `yaml:"client_certs"`
	Metrics     string         `yaml:"metrics"`
	AdminSocket string         `yaml:"admin_socket"`
	SealKeys    []sealKeyFile  `yaml:"seal_keys"`
	Signing     signingFile    `yaml:"signing"`
	StatusLists statusFile     `yaml:"status_lists"`
	Admission   admissionFile  `yaml:"admission"`
	Drain       drainFile      `yaml:"drain"`
	Limits      limitsFile     `yaml:"limits"`
	Proxies     *proxiesFile   `yaml:"trusted_proxies"`
	Checkpoint  string         `yaml:"checkpoint_file"`
	Log         logFile        `yaml:"log"`
	Sessions    sessionsFile   `yaml:"sessions"`
	TicketURL   string         `yaml:"ticket_url"`
	MCP         mcpFile        `yaml:"mcp"`
	OAuth       oauthFile      `yaml:"oauth"`
}

// oauthFile is about the clients of the token endpoint.
type oauthFile struct {
	RequireClientID bool                `yaml:"require_client_id"`
	Clients         map[string][]string `yaml:"clients"` // SPIFFE IDs by client ID
}

type mcpFile struct {
	Enabled *bool `yaml:"enabled"`
}

type listenerFile struct {
	Listen      string   `yaml:"listen"`
	TLS         *tlsFile `yaml:"tls"`
	ClientCerts string   `yaml:"client_certs"`
	Serve       []string `yaml:"serve"`
	Proxy       bool     `yaml:"proxy_protocol"`
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

type statusFile struct {
	TTL duration `yaml:"ttl"`
}

type admissionFile struct {
	PerSecond       float64   `yaml:"per_second"`
	Pending         int       `yaml:"pending"`
	Waiting         int       `yaml:"waiting_requests"`
	ResourceServers limitFile `yaml:"resource_servers"`
}

type limitFile struct {
	PerSecond float64 `yaml:"per_second"`
	Pending   int     `yaml:"pending"`
}

type limitsFile struct {
	Connections int `yaml:"connections"`
	PerAddress  int `yaml:"connections_per_address"`
	Unproved    int `yaml:"unproved_bytes"`
}

type proxiesFile struct {
	Networks []string `yaml:"networks"`
	Header   string   `yaml:"header"`
}

type drainFile struct {
	Delay   *delay   `yaml:"delay"`
	Timeout duration `yaml:"timeout"`
}

type sessionsFile struct {
	Idle  duration `yaml:"idle"`
	Lasts duration `yaml:"lasts"`
}

type logFile struct {
	Format string `yaml:"format"`
	Level  string `yaml:"level"`
}

type attestFile struct {
	TrustDomain  string            `yaml:"trust_domain"`
	TrustDomains []string          `yaml:"trust_domains"`
	Audiences    []string          `yaml:"audiences"`
	WorkloadAPI  string            `yaml:"workload_api"`
	Bundles      map[string]string `yaml:"bundles"`
	BundleMaxAge duration          `yaml:"bundle_max_age"`
	Workloads    []workloadFile    `yaml:"workloads"`

	InternalDomains []string        `yaml:"internal_domains"` // federated trust domains of the operator's own organization
	OrphanGrace     orphanGraceFile `yaml:"orphan_grace"`

	People map[string]personFile `yaml:"people"`

	OIDCWorkloads map[string]workloadIssuerFile `yaml:"oidc_workloads"`
}

type orphanGraceFile struct {
	Agents    *delay `yaml:"agents"`
	Workloads *delay `yaml:"workloads"`
}

type workloadFile struct {
	Under       string   `yaml:"under"`
	Kind        string   `yaml:"kind"`
	Accountable []string `yaml:"accountable"`
	Team        string   `yaml:"team"`
	Purpose     string   `yaml:"purpose"`
	Model       string   `yaml:"model"`
	Ends        string   `yaml:"ends"`

	Ceiling *map[string]ceilingFile `yaml:"ceiling"` // by entitlement; nil: policies alone decide
}

// personFile is an OpenID provider.
type personFile struct {
	Issuer              string   `yaml:"issuer"`
	ClientID            string   `yaml:"client_id"`
	ClientSecretFile    string   `yaml:"client_secret_file"`
	GroupsClaim         string   `yaml:"groups_claim"`
	ManagerClaim        string   `yaml:"manager_claim"`
	EndsClaim           string   `yaml:"ends_claim"`
	SponsorClaim        string   `yaml:"sponsor_claim"`
	Scopes              []string `yaml:"scopes"`
	CAFile              string   `yaml:"ca_file"`
	DelegationAudiences []string `yaml:"delegation_audiences"`

	Delegation delegationFile `yaml:"delegation"`
}

// delegationFile is who may act on behalf of a provider's people.
type delegationFile struct {
	IDJAG   bool                `yaml:"id_jag"`
	Clients map[string][]string `yaml:"clients"` // SPIFFE IDs by client ID
	Tenant  string              `yaml:"tenant"`
}

type issuerFile struct {
	Token   *tokenFile      `yaml:"token"`
	Vault   *vaultFile      `yaml:"vault"`
	AWS     *awsFile        `yaml:"aws"`
	SCIM    *scimIssuerFile `yaml:"scim"`
	LDAP    *ldapIssuerFile `yaml:"ldap"`
	Retired bool            `yaml:"retired"` // ends its leases, and issues no credentials
}

type tokenFile struct {
	Audience        string   `yaml:"audience"`
	ResourceServers []string `yaml:"resource_servers"`
}

type vaultFile struct {
	Address   string        `yaml:"address"`
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
	Audience string `yaml:"audience"` // of the JWT-SVID
}

type awsFile struct {
	Region   string      `yaml:"region"`
	Endpoint string      `yaml:"endpoint"` // of STS; empty: AWS's own
	CAFile   string      `yaml:"ca_file"`
	Auth     awsAuthFile `yaml:"auth"`
	Revoker  string      `yaml:"revoker_role_arn"`
}

type awsAuthFile struct {
	WebIdentity *webIdentityFile `yaml:"web_identity"`
	AssumeRole  *assumeRoleFile  `yaml:"assume_role"`
}

type webIdentityFile struct {
	Audience string `yaml:"audience"`
}

type assumeRoleFile struct {
	CredentialsFile string `yaml:"credentials_file"`
	Profile         string `yaml:"profile"`
}

type entitlementFile struct {
	Issuer        string                   `yaml:"issuer"`
	Description   string                   `yaml:"description"`
	Scopes        scopesFile               `yaml:"scopes"`
	DefaultScopes []string                 `yaml:"default_scopes"`
	DefaultTTL    duration                 `yaml:"default_ttl"`
	MaxTTL        duration                 `yaml:"max_ttl"`
	CollectWithin duration                 `yaml:"collect_within"`
	Owner         string                   `yaml:"owner"`
	System        string                   `yaml:"system"`
	Labels        map[string]string        `yaml:"labels"`
	Parameters    map[string]parameterFile `yaml:"parameters"`
	Binding       string                   `yaml:"binding"`
	StatusList    bool                     `yaml:"status_list"`
	Vault         *vaultSpecFile           `yaml:"vault"`
	AWS           *awsSpecFile             `yaml:"aws"`
	SCIM          *scimSpecFile            `yaml:"scim"`
	LDAP          *ldapSpecFile            `yaml:"ldap"`
	Egress        *egressFile              `yaml:"egress"`

	Details map[string]detailTypeFile `yaml:"authorization_details"` // by type
}

type parameterFile struct {
	Pattern     string `yaml:"pattern"`
	MaxLength   int    `yaml:"max_length"`
	Lines       bool   `yaml:"lines"` // allows line breaks
	Required    bool   `yaml:"required"`
	Description string `yaml:"description"`
}

// scopesFile is a list of names, or a mapping of names to the settings of each
// scope.
type scopesFile struct {
	names []string
	adds  map[string]scopeFile
}

type scopeFile struct {
	Description string   `yaml:"description"`
	Policies    []string `yaml:"policies"` // Vault: of the token
	Actions     []string `yaml:"actions"`  // AWS: of the session
	Resources   []string `yaml:"resources"`
}

// YAMLForm implements strictyaml.Former.
func (scopesFile) YAMLForm(isList bool) any {
	if isList {
		return []string(nil)
	}
	return map[string]scopeFile(nil)
}

// UnmarshalYAML implements yaml.NodeUnmarshaler.
func (f *scopesFile) UnmarshalYAML(node ast.Node) error {
	if _, isList := node.(*ast.SequenceNode); isList {
		return yaml.NodeToValue(node, &f.names, yaml.Strict())
	}
	if err := yaml.NodeToValue(node, &f.adds, yaml.Strict()); err != nil {
		return err
	}
	f.names = slices.Sorted(maps.Keys(f.adds))
	return nil
}

// awsSpecFile is the aws key of an entitlement. The actions and resources are in its
// scopes.
type awsSpecFile struct {
	RoleARN         string   `yaml:"role_arn"`
	FullRole        bool     `yaml:"full_role"`
	ManagedPolicies []string `yaml:"managed_policies"`
	ExternalID      string   `yaml:"external_id"`
	Chain           bool     `yaml:"chain"`
	RevokeSessions  string   `yaml:"revoke_sessions"`
}

// vaultSpecFile is the vault key of an entitlement.
type vaultSpecFile struct {
	Path       string            `yaml:"path"`
	Data       map[string]string `yaml:"data"`
	Policies   []string          `yaml:"policies"`
	Type       string            `yaml:"type"`
	Wrap       bool              `yaml:"wrap"`
	Ephemeral  *bool             `yaml:"ephemeral"`
	Revocation string            `yaml:"revocation"`
}

// notifyFile has the channels, by kind and name. groups.yaml refers to them as
// "slack:dba".
type notifyFile struct {
	Templates string                 `yaml:"templates"` // a folder with subject.txt, body.txt or both
	Slack     map[string]slackFile   `yaml:"slack"`
	Webhook   map[string]webhookFile `yaml:"webhook"`
	Mail      map[string]mailFile    `yaml:"mail"`
	People    string                 `yaml:"people"` // "mail:NAME", the channel for notices to one person
}

type slackFile struct {
	TokenFile    string `yaml:"token_file"`
	Channel      string `yaml:"channel"`
	WebhookFile  string `yaml:"webhook_file"` // the URL in it is a secret
	API          string `yaml:"api"`
	AllowPrivate bool   `yaml:"allow_private"`
}

type webhookFile struct {
	URL          string   `yaml:"url"`
	SecretFiles  []string `yaml:"secret_files"`
	CAFile       string   `yaml:"ca_file"`
	AllowPrivate bool     `yaml:"allow_private"`
}

type mailFile struct {
	Host         string   `yaml:"host"`
	Port         int      `yaml:"port"`
	From         string   `yaml:"from"`
	To           []string `yaml:"to"`
	Username     string   `yaml:"username"`
	PasswordFile string   `yaml:"password_file"`
	TLS          string   `yaml:"tls"`
	CAFile       string   `yaml:"ca_file"`
	AllowPrivate bool     `yaml:"allow_private"`
}
