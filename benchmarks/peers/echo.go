// A timestamp echo in Go, with a goroutine for each connection.
//
//	echo tcp PORT | echo udp PORT | echo tls PORT KEY CERTIFICATE
package main

import (
	"bytes"
	"crypto/tls"
	"fmt"
	"net"
	"os"
	"sync/atomic"
	"time"
)

type second struct {
	unix  int64
	stamp []byte
}

var last atomic.Value

func stamp() []byte {
	now := time.Now()
	if s, _ := last.Load().(second); s.unix == now.Unix() {
		return s.stamp
	}
	s := second{now.Unix(), []byte("[" + now.Format(time.ANSIC) + "] ")}
	last.Store(s)
	return s.stamp
}

func serve(conn net.Conn) {
	defer conn.Close()
	in := make([]byte, 65536)
	var out []byte
	begun := false // the start of the current line has been answered
	for {
		n, err := conn.Read(in)
		if err != nil {
			return
		}
		s := stamp()
		out = out[:0]
		for data := in[:n]; len(data) > 0; {
			end := bytes.IndexByte(data, '\n') + 1
			size := end
			if size == 0 {
				size = len(data)
			}
			if !begun {
				out = append(out, s...)
			}
			begun = end == 0
			out = append(out, data[:size]...)
			data = data[size:]
		}
		if _, err := conn.Write(out); err != nil {
			return
		}
	}
}

func datagrams(port string) {
	address, _ := net.ResolveUDPAddr("udp", "127.0.0.1:"+port)
	conn, err := net.ListenUDP("udp", address)
	if err != nil {
		panic(err)
	}
	fmt.Printf("listening on %d\n", conn.LocalAddr().(*net.UDPAddr).Port)
	in := make([]byte, 65536)
	var out []byte
	for {
		n, peer, err := conn.ReadFromUDPAddrPort(in)
		if err != nil {
			continue
		}
		out = append(append(out[:0], stamp()...), in[:n]...)
		conn.WriteToUDPAddrPort(out, peer)
	}
}

func secured(listener net.Listener, key, certificate string) net.Listener {
	pair, err := tls.LoadX509KeyPair(certificate, key)
	if err != nil {
		panic(err)
	}
	return tls.NewListener(listener, &tls.Config{Certificates: []tls.Certificate{pair}})
}

func main() {
	if os.Args[1] == "udp" {
		datagrams(os.Args[2])
	}
	listener, err := net.Listen("tcp", "127.0.0.1:"+os.Args[2])
	if err != nil {
		panic(err)
	}
	if os.Args[1] == "tls" {
		listener = secured(listener, os.Args[3], os.Args[4])
	}
	fmt.Printf("listening on %d\n", listener.Addr().(*net.TCPAddr).Port)
	for {
		conn, err := listener.Accept()
		if err == nil {
			go serve(conn)
		}
	}
}
