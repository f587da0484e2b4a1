package handoff

import (
	"strings"

	"accessbroker.internal/api"
)

// A file is a file of a credential, and the variables that name it.
type file struct {
	name, text string
	variables  []string
}

// service is the name under which the folder's files have the credential: the service of
// PostgreSQL's service file, and the profile of the AWS tools' credentials file.
const service = "access-broker"

// filesOf returns the files of a credential: the credential, a file for each field whose
// variable is the broker's own, and the files that the tools of its type read.
func filesOf(c *api.Credential, dir string) []file {
	var all []file
	for _, v := range fieldVariables(c) {
		if own, ok := strings.CutPrefix(v.name, "BROKER_"); ok {
			all = append(all, file{name: "field_" + strings.ToLower(own), text: c.Secret[v.field], variables: []string{v.name + "_FILE"}})
		}
	}
	switch c.Type {
	case "userpass":
		all = append(all, postgresFiles(c)...)
	case "aws":
		all = append(all, awsFiles(c, dir)...)
	case "certificate":
		all = append(all, certificateFiles(c)...)
	case "vault":
		all = append(all, file{name: "vault.hcl", text: "token_helper = " + hclString(dir+"/"+TokenHelper) + "\n", variables: []string{"VAULT_CONFIG_PATH"}})
	}
	if text := header(c); text != "" {
		all = append(all, file{name: "header", text: text, variables: []string{"BROKER_HEADER_FILE"}})
	}
	return append(all, file{name: "credential", text: Text(c), variables: []string{"BROKER_CREDENTIAL_FILE"}})
}

// postgresFiles returns the files of PostgreSQL's tools. The service file selects the user
// at each connection, so it stays right when the credential is renewed. Either is left out
// if it can't represent the credential.
func postgresFiles(c *api.Credential) []file {
	var all []file
	if line, err := Pgpass(c); err == nil {
		all = append(all, file{name: "pgpass", text: line + "\n", variables: []string{"PGPASSFILE"}})
	}
	if section, err := Pgservice(c, service); err == nil {
		all = append(all, file{name: "pg_service.conf", text: section, variables: []string{"PGSERVICEFILE"}})
	}
	return all
}

// awsFiles returns a credentials file whose profile reads the other file. Unlike keys in
// the file itself, the tools read it again before they expire.
func awsFiles(c *api.Credential, dir string) []file {
	text, err := AWSProcess(c)
	if err != nil {
		return nil
	}
	return []file{
		{name: "aws.json", text: text},
		{name: "aws_credentials", text: "[" + service + "]\ncredential_process = cat \"" + dir + "/aws.json\"\n", variables: []string{"AWS_SHARED_CREDENTIALS_FILE"}},
	}
}

// certificateFiles returns the files that TLS clients read: the certificate with its chain,
// and the key.
func certificateFiles(c *api.Credential) []file {
	all := []file{{
		name: "tls.crt", text: strings.TrimSpace(c.Secret["certificate"]) + "\n" + c.Secret["chain"],
		variables: []string{"BROKER_TLS_CERT_FILE", "PGSSLCERT"},
	}}
	if key := c.Secret["private_key"]; key != "" {
		all = append(all, file{name: "tls.key", text: key, variables: []string{"BROKER_TLS_KEY_FILE", "PGSSLKEY"}})
	}
	return all
}

// hclString quotes text for HCL.
func hclString(s string) string {
	return `"` + strings.NewReplacer(`\`, `\\`, `"`, `\"`, "${", "$${").Replace(s) + `"`
}

// environmentOf returns the environment of a child that reads the files of dir.
func environmentOf(c *api.Credential, files []file, dir string, lookup func(string) (string, bool)) Environment {
	e := Environment{Set: about(c), Remove: displaced[c.Type]}
	for _, f := range files {
		for _, name := range f.variables {
			if name == "PGSERVICEFILE" {
				// A service of the environment names the host and database, too. The child
				// keeps it, and then finds the password by the user's name.
				if _, taken := lookup("PGSERVICE"); taken {
					continue
				}
				e.Set = append(e.Set, [2]string{"PGSERVICE", service})
			}
			e.Set = append(e.Set, [2]string{name, dir + "/" + f.name})
		}
	}
	switch c.Type {
	case "userpass":
		e.Set = append(e.Set, [2]string{"PGUSER", c.Secret["username"]})
	case "aws":
		e.Set = append(e.Set, [2]string{"AWS_PROFILE", service})
	case "vault":
		e.Remove = append([]string{"BAO_CONFIG_PATH"}, e.Remove...)
	}
	return e
}
