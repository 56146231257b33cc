package main

import (
	"crypto/rand"
	"crypto/sha256"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"os"

	"software.sslmate.com/src/go-pkcs12"
)

func must(err error) {
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
}

// PFX files by the library for Go that Smallstep uses.
//
//	read FILE PASSWORD                          prints the kind of key and the SHA-256 of the certificate
//	write KEY CERTIFICATE PASSWORD FILE         of PEM files
func main() {
	switch os.Args[1] {
	case "read":
		file, err := os.ReadFile(os.Args[2])
		must(err)
		key, certificate, _, err := pkcs12.DecodeChain(file, os.Args[3])
		must(err)
		fmt.Printf("%T %X\n", key, sha256.Sum256(certificate.Raw))
	case "write":
		pemOf := func(name string) []byte {
			text, err := os.ReadFile(name)
			must(err)
			block, _ := pem.Decode(text)
			return block.Bytes
		}
		key, err := x509.ParsePKCS8PrivateKey(pemOf(os.Args[2]))
		must(err)
		certificate, err := x509.ParseCertificate(pemOf(os.Args[3]))
		must(err)
		file, err := pkcs12.Encode(rand.Reader, key, certificate, nil, os.Args[4])
		must(err)
		must(os.WriteFile(os.Args[5], file, 0600))
	}
}
